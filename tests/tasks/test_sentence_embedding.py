from collections.abc import Sequence
from math import cos, radians, sin
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import InputError
from edgekit.tasks import Arrays, Feature, Row
from edgekit.tasks import sentence_embedding as task
from edgekit.tasks.sentence_embedding import Example, Params


def at(degrees: float, length: float = 1.0) -> Arrays:
    return {"sentence_embedding": length * np.array([cos(radians(degrees)), sin(radians(degrees))])}


def test_spearman_by_hand():
    # angles 10, 80, 40, 60 degrees: cosines rank 4, 1, 3, 2; scores rank 3, 1, 4, 2; sum of squared differences 2
    examples = [Example(("a", "b"), score) for score in (3.0, 0.5, 5.0, 1.0)]
    outputs = [vector for angle in (10, 80, 40, 60) for vector in (at(0, 7.0), at(angle, 0.1))]
    score = task.score(Params(), examples, (), [], outputs)
    assert (score.metric, score.examples) == ("spearman", 4)
    assert score.value == pytest.approx(1 - 6 * 2 / (4 * (16 - 1)))
    pearson = np.corrcoef([cos(radians(a)) for a in (10, 80, 40, 60)], [3.0, 0.5, 5.0, 1.0])[0, 1]
    assert score.parts[0].value == pytest.approx(pearson)


def test_a_model_that_says_the_same_of_all_scores_nothing():
    examples = [Example(("a", "b"), score) for score in (1.0, 2.0)]
    assert task.score(Params(), examples, (), [], [at(0)] * 4).value == 0.0


def test_training_rows_are_texts_or_pairs_and_scoring_rows_pairs(folder: Path):
    text = Row("f: row 1", {"text": "the cat"})
    pair = Row("f: row 2", {"text_a": "the cat", "text_b": "the mat", "score": "3.5"})
    train = task.examples(Params(), [text, pair], (), training=True)
    assert train == [Example(("the cat",)), Example(("the cat", "the mat"))]
    dev = task.examples(Params(), [pair], (), training=False)
    assert dev == [Example(("the cat", "the mat"), 3.5)]
    features = task.features(Params(), train, (), task.encoder(Params(), folder, 32))
    assert [feature.example for feature in features] == [0, 1, 1]
    assert all(not feature.labels for feature in features)


@pytest.mark.parametrize("score", ["high", True, float("inf"), None])
def test_a_score_must_be_a_finite_number(score: object):
    row = Row("dev.csv: row 2", {"text_a": "a", "text_b": "b", "score": score})
    with pytest.raises(InputError, match=r'dev\.csv: row 2: column "score"'):
        task.examples(Params(), [row], (), training=False)


def test_answer_embeds_one_text_and_compares_two(folder: Path):
    def predict(features: Sequence[Feature]) -> list[Arrays]:
        return [at(60 * i) for i in range(len(features))]

    encoder = task.encoder(Params(), folder, 32)
    one = task.answer(Params(), ["the cat"], (), encoder, predict)
    assert one["text"].startswith("2 dimensions: 1.0000 0.0000")
    assert (one["dimensions"], one["norms"], one["embeddings"]) == (2, [1.0], [[1.0, 0.0]])
    two = task.answer(Params(), ["the cat", "the mat"], (), encoder, predict)
    assert (two["text"], two["cosine"]) == ("cosine 0.5000", 0.5)
    with pytest.raises(InputError, match="one text, or two"):
        task.answer(Params(), ["a", "b", "c"], (), encoder, predict)
