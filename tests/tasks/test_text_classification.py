from collections.abc import Sequence
from math import sqrt
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import InputError
from edgekit.tasks import Arrays, Feature, Row
from edgekit.tasks import text_classification as task
from edgekit.tasks.text_classification import Example, Params


def score(params: Params, true: Sequence[int], found: Sequence[int], labels: tuple[str, ...]):
    outputs = [{"logits": np.eye(len(labels))[i]} for i in found]
    examples = [Example(("x",), i) for i in true]
    result = task.score(params, examples, labels, [], outputs)
    return {result.metric: result.value} | {part.name: part.value for part in result.parts}


def test_metrics_of_two_labels_by_hand():
    # true positives 3, false positives 1, false negatives 2, true negatives 2
    found = score(Params(), [1, 1, 1, 0, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0], ("no", "yes"))
    positive, negative = 6 / 9, 4 / 7
    assert found["accuracy"] == pytest.approx(5 / 8)
    assert found["f1"] == pytest.approx(positive)
    assert found["macro_f1"] == pytest.approx((positive + negative) / 2)
    assert found["matthews"] == pytest.approx((3 * 2 - 1 * 2) / sqrt(4 * 5 * 3 * 4))


def test_metrics_of_three_labels_by_hand():
    found = score(Params(metric="macro_f1"), [0, 1, 2, 2], [0, 2, 2, 2], ("a", "b", "c"))
    assert found["macro_f1"] == pytest.approx((1 + 0 + 0.8) / 3)
    assert found["accuracy"] == 0.75
    assert "f1" not in found


@pytest.mark.parametrize("metric", ["accuracy", "f1", "macro_f1", "matthews"])
def test_the_headline_is_the_one_asked_for(metric: str):
    examples, outputs = [Example(("x",), 0), Example(("x",), 1)], [{"logits": row} for row in np.eye(2)]
    result = task.score(Params(metric=metric), examples, ("a", "b"), [], outputs)
    assert result.metric == metric
    assert {part.name for part in result.parts} | {metric} == {"accuracy", "f1", "macro_f1", "matthews"}


def test_f1_of_three_labels_is_refused():
    with pytest.raises(InputError, match='"f1" needs two labels, found 3'):
        task.labels(Params(metric="f1", labels=("a", "b", "c")), [])


def test_numbers_are_labels_in_their_order():
    rows = [Row(f"f: row {i}", {"label": label}) for i, label in enumerate((10, 2, 0, 2, "1"))]
    assert task.labels(Params(), rows) == ("0", "1", "2", "10")
    (example,) = task.examples(Params(), [Row("f", {"text": "x", "label": 10})], ("0", "1", "2", "10"), training=True)
    assert example.label == 3


def test_one_label_alone_is_refused():
    with pytest.raises(InputError, match="at least two"):
        task.labels(Params(), [Row("f: row 1", {"label": "good"})])
    with pytest.raises(InputError, match="twice"):
        task.labels(Params(labels=("a", "b", "a")), [])


def test_a_pair_is_encoded_with_segments_and_cut_at_the_longer_text(folder: Path):
    params = Params(text="a", text_b="b")
    (example,) = task.examples(
        params, [Row("f", {"a": "the cat", "b": "thank you " * 20, "label": "x"})], ("x", "y"), training=True
    )
    (feature,) = task.features(params, [example], ("x", "y"), task.encoder(params, folder, 12))
    assert len(feature.inputs["input_ids"]) == 12
    assert feature.inputs["token_type_ids"].tolist() == [0] * 4 + [1] * 8
    assert feature.inputs["attention_mask"].tolist() == [1] * 12
    assert feature.labels["labels"] == 0


def test_answer_tells_the_label_and_all_probabilities(folder: Path):
    def predict(features: Sequence[Feature]) -> list[Arrays]:
        return [{"logits": np.log(np.array([0.2, 0.8]))} for _ in features]

    encoder = task.encoder(Params(), folder, 32)
    found = task.answer(Params(), ["the cat"], ("bad", "good"), encoder, predict)
    assert found == {"text": "good (80.0%)", "label": "good", "probabilities": {"bad": 0.2, "good": 0.8}}
    with pytest.raises(InputError, match=r"takes 2 input\(s\), text and text_b; found 1"):
        task.answer(Params(text_b="text_b"), ["the cat"], ("bad", "good"), encoder, predict)
