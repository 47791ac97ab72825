import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from edgekit.errors import InputError
from edgekit.tasks import Arrays, Feature, Row
from edgekit.tasks import token_classification as task
from edgekit.tasks.token_classification import Params, Sentence

LABELS = ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")
WORD = st.text(string.ascii_lowercase, min_size=1, max_size=12)


def one_hot(tags: Sequence[str], labels: Sequence[str] = LABELS) -> np.ndarray:
    return np.eye(len(labels))[[labels.index(tag) for tag in tags]]


def by_word(tags: dict[str, str], encoder: Tokenizer, labels: Sequence[str] = LABELS):
    """A model that knows the tag of some words by their first token."""
    known = {encoder.encode(word, add_special_tokens=False).ids[0]: labels.index(tag) for word, tag in tags.items()}

    def predict(features: Sequence[Feature]) -> list[Arrays]:
        none = labels.index("O")
        return [
            {"logits": 9.0 * np.eye(len(labels))[[known.get(i, none) for i in f.inputs["input_ids"].tolist()]]}
            for f in features
        ]

    return predict


def test_labels_come_from_the_training_rows_or_the_recipe():
    rows = [Row("f: row 1", {"tags": ["O", "B-PER"]}), Row("f: row 2", {"tags": "O I-PER"})]
    assert task.labels(Params(), rows) == ("B-PER", "I-PER", "O")
    assert task.labels(Params(labels=("O", "X")), []) == ("O", "X")


def test_a_list_and_a_text_with_spaces_are_the_same_row():
    listed = Row("f: row 1", {"tokens": ["anna", "lives"], "tags": ["B-PER", "O"]})
    spaced = Row("f: row 1", {"tokens": "anna lives", "tags": "B-PER O"})
    want = [Sentence(("anna", "lives"), (1, 4))]
    assert task.examples(Params(), [listed], LABELS, training=True) == want
    assert task.examples(Params(), [spaced], LABELS, training=False) == want


def test_a_word_is_labelled_at_its_first_token(folder: Path):
    encoder = task.encoder(Params(), folder, 32)
    (feature,) = task.features(Params(), [Sentence(("anna", "york"), (1, 2))], LABELS, encoder)
    assert feature.inputs["input_ids"].dtype == np.int64
    assert [encoder.id_to_token(i) for i in feature.inputs["input_ids"]] == [
        "[CLS]", "anna", "y", "##o", "##r", "##k", "[SEP]",
    ]  # fmt: skip
    assert feature.labels["labels"].tolist() == [-100, 1, 2, -100, -100, -100, -100]


@given(words=st.lists(WORD, min_size=1, max_size=60), max_length=st.integers(8, 40))
def test_windows_hold_each_word_once_at_its_first_token(folder: Path, words: list[str], max_length: int):
    encoder = task.encoder(Params(), folder, max_length)
    tags = tuple(i % len(LABELS) for i in range(len(words)))
    features = task.features(Params(), [Sentence(tuple(words), tags)], LABELS, encoder)
    seen = [int(word) for f in features for word in f.extra["words"]]
    assert sorted(seen) == list(range(len(words)))
    for feature in features:
        assert len(feature.inputs["input_ids"]) <= max_length
        for word, position in zip(feature.extra["words"], feature.extra["positions"], strict=True):
            first = encoder.encode(words[word], add_special_tokens=False).ids[0]
            assert feature.inputs["input_ids"][position] == first
            assert feature.labels["labels"][position] == tags[word]
        assert (feature.labels["labels"] >= 0).sum() == len(feature.extra["words"])


def test_a_word_inside_belongs_to_the_window_with_most_context(folder: Path):
    encoder = task.encoder(Params(), folder, 18)  # 16 words a window, the next one starts 12 words later
    features = task.features(Params(), [Sentence(("the",) * 40, (4,) * 40)], LABELS, encoder)
    assert [f.extra["words"].tolist() for f in features] == [
        list(range(14)), list(range(14, 26)), list(range(26, 40)),
    ]  # fmt: skip


def test_entity_f1_counts_whole_entities():
    tags = ("B-PER", "I-PER", "O", "B-LOC")
    example = [Sentence(("anna", "york", "in", "new"), tuple(LABELS.index(tag) for tag in tags))]
    feature = Feature({}, 0, extra={"words": np.arange(4), "positions": np.arange(1, 5)})
    found = ("O", "B-PER", "O", "O", "B-LOC", "O")  # of CLS, four words, SEP: half of the person, all of the place
    score = task.score(Params(), example, LABELS, [feature], [{"logits": one_hot(found)}])
    assert (score.metric, score.value, score.examples) == ("entity_f1", 0.5, 1)
    assert {part.name: (part.value, part.support) for part in score.parts} == {"PER": (0.0, 1), "LOC": (1.0, 1)}


def test_other_labels_are_scored_word_by_word_without_o():
    labels = ("NOUN", "O", "VERB")
    true, found = ("NOUN", "NOUN", "VERB", "O"), ("NOUN", "VERB", "VERB", "NOUN")
    example = [Sentence(("a", "b", "c", "d"), tuple(labels.index(tag) for tag in true))]
    feature = Feature({}, 0, extra={"words": np.arange(4), "positions": np.arange(4)})
    score = task.score(Params(), example, labels, [feature], [{"logits": one_hot(found, labels)}])
    # two hits; four words guessed, three true: 2 * 2 / (4 + 3)
    assert score.metric == "micro_f1"
    assert score.value == pytest.approx(4 / 7)
    assert {p.name: (p.value, p.support) for p in score.parts} == {"NOUN": (0.5, 2), "VERB": (pytest.approx(2 / 3), 1)}


def test_answer_gives_entities_with_their_place_in_the_text(folder: Path):
    encoder = task.encoder(Params(), folder, 32)
    predict = by_word({"anna": "B-PER", "new": "B-LOC", "york": "I-LOC"}, encoder)
    text = "Anna lives in New York."
    found = task.answer(Params(), [text], LABELS, encoder, predict)
    assert found["text"] == "PER\tAnna\nLOC\tNew York"
    assert [text[e["start"] : e["end"]] for e in found["entities"]] == ["Anna", "New York"]
    assert [word["text"] for word in found["words"]] == ["Anna", "lives", "in", "New", "York", "."]
    assert all(word["probability"] > 0.99 for word in found["words"])


def test_answer_tells_characters_of_chinese_apart(folder: Path):
    encoder = task.encoder(Params(), folder, 32)
    found = task.answer(Params(), ["我在 york"], LABELS, encoder, by_word({}, encoder))
    assert [word["text"] for word in found["words"]] == ["我", "在", "york"]
    assert found["text"] == "(no entities)"


@pytest.mark.parametrize("given", [[], ["a", "b"], ["  "]])
def test_answer_wants_one_text(folder: Path, given: list[str]):
    encoder = task.encoder(Params(), folder, 32)
    with pytest.raises(InputError, match="token classification"):
        task.answer(Params(), given, LABELS, encoder, by_word({}, encoder))


def test_a_word_without_a_token_is_o(folder: Path):
    encoder = task.encoder(Params(), folder, 32)
    example = [Sentence(("anna", "\u200b"), (1, 4))]
    features = task.features(Params(), example, LABELS, encoder)
    outputs = [{"logits": one_hot(["B-PER"] * len(f.inputs["input_ids"]))} for f in features]
    assert task.word_logits(example, LABELS, features, outputs)[0].argmax(-1).tolist() == [1, 4]


def test_words_of_byte_level_tokenizers_look_as_inside_a_text(tmp_path: Path):
    space = chr(0x120)  # how byte-level tokenizers write the space before a word
    vocabulary = {token: i for i, token in enumerate(["a", "b", space, f"{space}a", f"{space}b"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [(space, "a"), (space, "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoder = task.encoder(Params(), tmp_path, 16)
    (feature,) = task.features(Params(), [Sentence(("a", "b"), (0, 1))], LABELS, encoder)
    assert feature.inputs["input_ids"].tolist() == [vocabulary[f"{space}a"], vocabulary[f"{space}b"]]


def test_a_folder_without_a_fast_tokenizer_says_what_to_save(tmp_path: Path):
    with pytest.raises(InputError, match=r"tokenizer\.json: there is no such file.*use_fast=True"):
        task.encoder(Params(), tmp_path, 32)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer\.json: is not JSON"):
        task.encoder(Params(), tmp_path, 32)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match='has no key "model"'):
        task.encoder(Params(), tmp_path, 32)
