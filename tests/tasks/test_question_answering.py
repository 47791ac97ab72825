import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import InputError
from edgekit.tasks import Arrays, Feature, Row
from edgekit.tasks import question_answering as task
from edgekit.tasks.question_answering import Example, Params

CONTEXT = "the cat sat on the mat. anna lives in new york. " + "thank you mr speaker. " * 10 + "the mat are ready."


def perfect(features: Sequence[Feature]) -> list[Arrays]:
    """A model that points at the answer where a window holds it, and is unsure elsewhere."""
    found: list[Arrays] = []
    for feature in features:
        start, end = np.zeros(len(feature.inputs["input_ids"])), np.zeros(len(feature.inputs["input_ids"]))
        if feature.labels["start_positions"]:
            start[feature.labels["start_positions"]] = end[feature.labels["end_positions"]] = 9.0
        found.append({"start_logits": start, "end_logits": end})
    return found


@pytest.mark.parametrize(
    ("found", "right", "f1"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1.0),
        ("in new york", "New York.", 2 * 2 / (3 + 2)),
        ("a cat a cat", "cat", 2 * 1 / (2 + 1)),
        ("dog", "cat", 0.0),
    ],
)
def test_word_f1_by_hand(found: str, right: str, f1: float):
    assert task.word_f1(found, right) == pytest.approx(f1)


def test_normalised_as_squad_does():
    assert task.normalised(" The  U.S.-led  an a force, ") == "usled force"


@pytest.mark.parametrize("answer", ["anna", "new york", "mr speaker", "on the mat", "ready"])
def test_windows_find_the_answer_again(folder: Path, answer: str):
    example = Example("are you ready?", CONTEXT, ((answer, CONTEXT.rindex(answer)),))
    features = task.features(Params(), [example], (), task.encoder(Params(), folder, 40))
    assert len(features) >= 3
    assert max(len(f.inputs["input_ids"]) for f in features) <= 40
    score = task.score(Params(), [example], (), features, perfect(features))
    assert (score.metric, score.value, score.parts[0].name, score.parts[0].value) == ("f1", 1.0, "exact_match", 1.0)


def test_score_takes_the_best_right_answer_and_averages():
    context = "anna lives in new york"
    examples = [
        Example("where?", context, (("york", 18), ("in new york", 11))),
        Example("who?", context, (("anna", 0),)),
    ]
    offsets = np.array([(0, 4), (5, 10), (11, 13), (14, 17), (18, 22)])
    extra = {"offsets": offsets, "inside": np.ones(5, dtype=bool)}
    features = [Feature({}, 0, extra=extra), Feature({}, 1, extra=extra)]
    outputs = [
        {"start_logits": np.eye(5)[3], "end_logits": np.eye(5)[4]},  # "new york": F1 0.8 with the second answer
        {"start_logits": np.eye(5)[0], "end_logits": np.eye(5)[0]},  # "anna"
    ]
    score = task.score(Params(), examples, (), features, outputs)
    assert score.value == pytest.approx((0.8 + 1.0) / 2)
    assert score.parts[0].value == 0.5


def test_no_answer_from_the_question_or_backwards(folder: Path):
    def predict(features: Sequence[Feature]) -> list[Arrays]:
        (feature,) = features
        n = len(feature.inputs["input_ids"])
        start, end = np.zeros(n), np.zeros(n)
        start[1] = end[1] = 99.0  # in the question
        start[n - 3], end[n - 4] = 5.0, 5.5  # the end before the start
        return [{"start_logits": start, "end_logits": end}]

    context = "the cat sat on the mat"
    found = task.answer(Params(), ["are you ready", context], (), task.encoder(Params(), folder, 40), predict)
    assert context[found["start"] : found["end"]] == found["text"] == found["answer"]
    assert found["score"] == 5.5


def test_a_long_question_leaves_room_for_the_context(folder: Path):
    example = Example("are you ready " * 50, CONTEXT, (("anna", CONTEXT.index("anna")),))
    features = task.features(Params(), [example], (), task.encoder(Params(), folder, 48))
    assert all(f.extra["inside"].sum() >= 16 for f in features[:-1])
    assert task.score(Params(), [example], (), features, perfect(features)).value == 1.0


def test_both_layouts_of_answers_and_json_text():
    want = (("york", 18), ("new york", 14))
    listed = [{"text": text, "answer_start": start} for text, start in want]
    columns = {"text": ["york", "new york"], "answer_start": [18, 14]}
    for value in (listed, columns, json.dumps(listed), json.dumps(columns)):
        row = Row("f", {"context": "anna lives in new york", "question": "where?", "answers": value})
        assert task.examples(Params(), [row], (), training=True)[0].answers == want


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([], "is empty"),
        ({"text": [], "answer_start": []}, "at least one answer"),
        ([{"text": "york"}], "must hold"),
        ({"text": ["a", "b"], "answer_start": [1]}, "must hold"),
        ([{"text": "york", "answer_start": 17}], 'answer "york" does not stand at character 17'),
        ([{"text": "york", "answer_start": -4}], "does not stand at character -4"),
        ([{"text": "york", "answer_start": "18"}], "the start '18'"),
        ("{", "must hold"),
        (7, "must hold"),
    ],
)
def test_bad_answers_name_row_and_column(answers: object, message: str):
    row = Row("dev.jsonl: row 3", {"context": "anna lives in new york", "question": "where?", "answers": answers})
    with pytest.raises(InputError, match=message) as caught:
        task.examples(Params(), [row], (), training=False)
    assert str(caught.value).startswith('dev.jsonl: row 3: column "answers"')


def test_too_short_sequences_are_refused(folder: Path):
    with pytest.raises(InputError, match='"max_length": question answering needs at least 32'):
        task.encoder(Params(), folder, 16)
