"""Augment: only words change, by the likeliest ones and the nearest ones; labels, tags and marks stay."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import families as tiny
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from edgekit import recipe as recipes
from edgekit.errors import InputError
from edgekit.pipeline import ROWS, Job, Made, TaskData, augment, language, models
from edgekit.recipe import Augment, Recipe
from edgekit.records import Artifact, Facts, Use

LABELS = ("bad", "good")
PLAIN = [{"text": each, "label": "bad" if "bad" in each else "good"} for each in tiny.TEXTS]
TAGGED = [
    {"tokens": each.split(), "tags": ["bad" if w == "the" else "good" for w in each.split()]} for each in tiny.TEXTS
]


def job(
    folder: Path, rows: list[dict[str, Any]], task: str = "text_classification", family: str = "bert",
    vectors: dict[str, list[float]] | None = None, max_length: int = 64, columns: dict[str, str] | None = None,
    **step: object,
) -> tuple[Augment, Job]:  # fmt: skip
    kind = task.replace("_", "-") if "class" in task else "token-classification"
    model = tiny.make(folder / "language", family, kind, LABELS)
    torch.manual_seed(2)
    head = language.new_head(models.load(model, kind, LABELS, new_head=True))  # type: ignore[arg-type]
    language.save(head, model)
    (folder / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"name": "files", "train": "task.jsonl", "dev": "task.jsonl"}
    table: dict[str, Any] = {"data": files}
    if vectors:
        words = np.array("\n".join(vectors).encode())
        np.savez(folder / "vectors.npz", words=words, vectors=np.array(list(vectors.values()), np.float16))
        table["vectors"] = "vectors.npz"
    recipe = Recipe.model_validate({
        "name": "x", "max_length": max_length, "task": {"name": task, "labels": LABELS, **(columns or {})},
        "data": files, "text": table,
        "step": [
            {"stage": "teach", "model": "language"}, {"stage": "pretrain"},
            {"stage": "augment", "copies": 6, "candidates": 5, **step},
        ],
    })  # fmt: skip
    (folder / "out").mkdir(exist_ok=True)
    artifact = Artifact(
        id="0" * 64, name="pretrain", stage="pretrain", parents=(), files=(), facts=Facts(bytes=1, changed=""),
        seconds=0, versions={},
    )  # fmt: skip
    made = Made(artifact, model)
    found = recipe.step[2]
    assert isinstance(found, Augment)
    parents = {"model": made, "language": made}
    return found, Job(recipe, recipes.target("host"), TaskData(recipe, folder), parents, folder / "out", folder)


def made(work: tuple[Augment, Job]) -> list[dict[str, Any]]:
    facts = augment.run(*work)
    rows = [json.loads(line) for line in (work[1].out / ROWS).read_text().splitlines()]
    assert facts.changed == f"{len(rows)} rows made from {len(work[1].data.examples('train'))}"
    return rows


@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "mpnet", "deberta-v2"])
def test_words_change_and_nothing_else(family: str, tmp_path: Path) -> None:
    rows = made(job(tmp_path, PLAIN, family=family))
    assert 2 * len(PLAIN) < len(rows) <= 6 * len(PLAIN)
    assert len({json.dumps(row) for row in rows}) == len(rows)
    shapes = {(augment.WORD.sub("_", row["text"]), row["label"]) for row in PLAIN}
    assert {(augment.WORD.sub("_", row["text"]), row["label"]) for row in rows} <= shapes
    assert not {row["text"] for row in rows} & {row["text"] for row in PLAIN}
    known = set(" ".join(tiny.TEXTS).replace(",", "").replace(".", "").split())
    words = {word for row in rows for word in augment.WORD.findall(row["text"])}
    assert len(words & known) > 5


def test_tags_stay_with_their_words_and_long_rows_are_windows(tmp_path: Path) -> None:
    long = {key: [value for row in TAGGED for value in row[key]] for key in ("tokens", "tags")}
    rows = made(job(tmp_path, [*TAGGED, long], "token_classification", max_length=16))
    origins = {json.dumps(row["tags"]): row["tokens"] for row in [*TAGGED, long]}
    for row in rows:
        assert len(row["tokens"]) == len(row["tags"]) and row["tokens"] != origins[json.dumps(row["tags"])]
    assert any(len(row["tokens"]) == len(long["tokens"]) for row in rows)


def test_the_seed_decides(tmp_path: Path) -> None:
    step, other = job(tmp_path, PLAIN)
    first = made((step, other))
    assert first == made((step, other))
    recipe = other.recipe.model_copy(update={"seed": 1})
    assert made((step, Job(recipe, other.target, other.data, other.parents, other.out, other.scratch))) != first


def test_some_rows_get_the_copies_that_they_get_among_all(tmp_path: Path) -> None:
    step, work = job(tmp_path, PLAIN)
    all_of_them = made((step, work))
    some = step.model_copy(update={"rows": 2})
    assert augment.run(some, work).changed.endswith("rows made from 2")
    rows = [json.loads(line) for line in (work.out / ROWS).read_text().splitlines()]
    shapes = [augment.WORD.sub("_", row["text"]) for row in PLAIN]
    chosen = {shapes[len(PLAIN) // 2 - 1 + len(PLAIN) % 2], shapes[-1]}
    assert rows == [row for row in all_of_them if augment.WORD.sub("_", row["text"]) in chosen]
    assert augment.run(step.model_copy(update={"rows": 999}), work).changed.endswith(f"made from {len(PLAIN)}")


def test_a_word_of_one_token_gets_the_likeliest_words(tmp_path: Path) -> None:
    """Against a full forward pass with one word masked, and its logits sorted."""
    text = "a good film with a story"
    step, work = job(tmp_path, [{"text": text, "label": "good"}], copies=200, replace=1.0, candidates=4)
    folder = tmp_path / "language"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = models.load(folder, "text-classification", LABELS)
    head = language.load(folder, model)
    words = text.split()
    encoding = tokenizer.encode(text)
    found = [set[str]() for _ in words]
    for row in made((step, work)):
        for kept, word in zip(found, row["text"].split(), strict=True):
            kept.add(word)
    whole = 0
    for position, word in enumerate(words):
        own = [i for i, w in enumerate(encoding.word_ids) if w == position]
        if len(own) > 1:
            assert found[position] == {word}  # no vectors: it stays
            continue
        whole += 1
        ids = torch.tensor([encoding.ids])
        ids[0, own[0]] = 4
        with torch.no_grad():
            states = model.base_model(input_ids=ids).last_hidden_state[0, own[0]]
            order = head(states, language.words(model).weight).argsort(descending=True).tolist()
        tokens = [tokenizer.id_to_token(i) for i in order]
        best = [t for t in tokens if t.isalpha() and t != word and "#" not in t]
        assert found[position] == set(best[:4])
    assert whole > 3


@pytest.mark.parametrize("max_length", [16, 64])
def test_words_far_apart_share_a_sequence(max_length: int, tmp_path: Path) -> None:
    _, work = job(tmp_path, PLAIN, max_length=max_length)
    model = augment._Model(tmp_path / "language", work, 5)  # pyright: ignore[reportPrivateUsage]
    row = augment._Words([" ".join(tiny.TEXTS)])  # pyright: ignore[reportPrivateUsage]
    every = set(range(len(row.at)))
    asked = list(model.asked(row, every))
    numbers = [number for each in asked for number in each.words]
    assert len(numbers) == len(set(numbers)) > 30
    for each in asked:
        assert len(each.ids) == max_length
        assert all(b - a >= 7 for a, b in pairwise(each.places))
        for number, place in zip(each.words, each.places, strict=True):
            assert model.tokenizer.id_to_token(each.ids[place]) == row.words()[number]
    if max_length > 16:
        assert len(asked) < len(numbers) / 2
    assert [n for each in model.asked(row, {0}) for n in each.words] in ([0], [])


def test_a_split_word_gets_the_nearest_ones(tmp_path: Path) -> None:
    vectors = {"zebra": [1.0, 0.0], "horse": [0.9, 0.1], "donkey": [2.0, 0.9], ",": [1.0, 0.0], "house": [-1.0, 0.2]}
    row = {"text": "Zebra zyzzyva 42, !", "label": "good"}
    rows = made(job(tmp_path, [row], vectors=vectors, copies=60, replace=1.0, candidates=2))
    assert {each["text"] for each in rows} == {"horse zyzzyva 42, !", "donkey zyzzyva 42, !"}


def test_both_texts_of_a_pair(tmp_path: Path) -> None:
    pairs = [{"a": one, "b": other, "label": "good"} for one, other in pairwise(tiny.TEXTS)]
    rows = made(job(tmp_path, pairs, columns={"text": "a", "text_b": "b"}))
    before = [{row[key] for row in pairs} for key in ("a", "b")]
    assert any(row["a"] not in before[0] and row["b"] not in before[1] for row in rows)
    assert all(set(row) == {"a", "b", "label"} for row in rows)


def test_the_new_rows_are_trained_on_beside_the_old(tmp_path: Path) -> None:
    step, work = job(tmp_path, PLAIN)
    rows = made((step, work))
    more = work.data.with_rows(work.out)
    assert len(more.examples("train")) == len(PLAIN) + len(rows)
    assert len(more.examples("dev")) == len(PLAIN)
    assert more.fingerprint != work.data.fingerprint
    assert len(more.features("train", tmp_path / "language")) == len(PLAIN) + len(rows)


def test_no_word_to_replace(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no word of the training rows could be replaced"):
        augment.run(*job(tmp_path, [{"text": "1 2 3 !", "label": "good"}, {"text": "4", "label": "bad"}]))


def test_other_tasks_and_no_language_model_are_refused(tmp_path: Path) -> None:
    _, work = job(tmp_path, PLAIN)
    augment.check(work.recipe, tmp_path)
    for task, kind in (("question_answering", "question-answering"), ("image_classification", "image-classification")):
        with pytest.raises(InputError, match=f"{task} is {kind}"):
            augment.check(work.recipe.model_copy(update={"task": Use(name=task)}), tmp_path)
    steps = (work.recipe.step[0], work.recipe.step[2])
    with pytest.raises(InputError, match="needs a masked language model; put a pretrain step"):
        augment.check(work.recipe.model_copy(update={"step": steps}), tmp_path)


def test_broken_vectors_are_named(tmp_path: Path) -> None:
    step, work = job(tmp_path, PLAIN, vectors={"a": [1.0]})
    np.savez(tmp_path / "vectors.npz", words=np.array(b"a\nb"), vectors=np.zeros((3, 2)))
    with pytest.raises(InputError, match=r"has 2 words and vectors of the shape \[3, 2\]"):
        augment.run(step, work)
    (tmp_path / "vectors.npz").write_bytes(b"no zip")
    with pytest.raises(InputError, match=r"is no \.npz of word vectors"):
        augment.run(step, work)
    np.savez(tmp_path / "vectors.npz", words=np.array([{"an": "object"}], dtype=object), vectors=np.zeros((1, 2)))
    with pytest.raises(InputError, match=r"is no \.npz of word vectors"):
        augment.run(step, work)
