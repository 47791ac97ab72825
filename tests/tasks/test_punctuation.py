from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from edgekit.tasks import Arrays, Feature, Row
from edgekit.tasks import punctuation as task
from edgekit.tasks.punctuation import Params
from edgekit.tasks.token_classification import Sentence

LABELS = task.labels(Params(), [])
MARKS = {",": "COMMA", ".": "PERIOD", "?": "QUESTION"}


def row(text: str) -> Row:
    """A row from a text with marks."""
    words = text.split()
    return Row(
        "hand", {"tokens": [word.strip(",.?") for word in words], "tags": [MARKS.get(word[-1], "O") for word in words]}
    )


def by_word(tags: dict[str, str], encoder: Tokenizer):
    known = {encoder.token_to_id(word): LABELS.index(tag) for word, tag in tags.items()}

    def predict(features: Sequence[Feature]) -> list[Arrays]:
        return [
            {"logits": 9.0 * np.eye(4)[[known.get(i, 0) for i in f.inputs["input_ids"].tolist()]]} for f in features
        ]

    return predict


def test_labels():
    assert LABELS == ("O", "COMMA", "PERIOD", "QUESTION")


def test_training_windows_join_to_the_row_again_and_vary():
    text = row("thank you, mr speaker. the cat sat on the mat. are you ready? " * 40)
    (whole,) = task.examples(Params(window=24), [text], LABELS, training=False)
    parts = task.examples(Params(window=24), [text], LABELS, training=True)
    assert parts == task.examples(Params(window=24), [text], LABELS, training=True)
    assert tuple(word for part in parts for word in part.words) == whole.words
    assert tuple(tag for part in parts for tag in part.tags) == whole.tags
    lengths = {len(part.words) for part in parts}
    assert max(lengths) <= 24
    assert len(lengths) > 5
    at_end = sum(part.tags[-1] >= LABELS.index("PERIOD") for part in parts) / len(parts)
    assert 0.35 < at_end < 0.9  # half by intent, and some of the others by chance


def test_score_is_the_mean_of_comma_and_period():
    example = Sentence(("a",) * 6, (1, 1, 2, 2, 3, 0))
    feature = Feature({}, 0, extra={"words": np.arange(6), "positions": np.arange(6)})
    found = np.eye(4)[[1, 0, 2, 1, 2, 0]]
    score = task.score(Params(), [example], LABELS, [feature], [{"logits": found}])
    # COMMA: 1 of 2 guesses, 1 of 2 true. PERIOD: likewise. QUESTION: never guessed.
    assert (score.metric, score.value) == ("macro_f1", 0.5)
    assert [(p.name, p.value, p.support) for p in score.parts] == [
        ("COMMA", 0.5, 2), ("PERIOD", 0.5, 2), ("QUESTION", 0.0, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("repeats", [1, 30])  # one window, and many
def test_a_text_goes_there_and_back(folder: Path, repeats: int):
    marked = " ".join(["thank you, mr speaker. the cat sat on the mat. are you, ready?"] * repeats)
    encoder = task.encoder(Params(), folder, 32)
    predict = by_word({"you": "COMMA", "speaker": "PERIOD", "mat": "PERIOD", "ready": "QUESTION"}, encoder)
    bare = " ".join(row(marked).values["tokens"])
    found = task.answer(Params(), [bare], LABELS, encoder, predict)
    assert found["text"] == marked
    assert [word["word"] for word in found["words"]] == bare.split()
    assert found["words"][1]["mark"] == ","
    assert found["words"][1]["probability"] > 0.99


def test_a_mark_that_is_there_is_not_doubled(folder: Path):
    encoder = task.encoder(Params(), folder, 32)
    found = task.answer(Params(), ["Thank  you. mr\nspeaker"], LABELS, encoder, by_word({"you": "COMMA"}, encoder))
    assert found["text"] == "Thank you. mr speaker"
