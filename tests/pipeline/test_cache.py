"""The kept signals: the same as live ones to float16, made once, bounded, refused where they are not ours."""

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import families as tiny
import numpy as np
import pytest
import torch

from edgekit import recipe as recipes
from edgekit.errors import InputError
from edgekit.pipeline import Job, Made, TaskData, cache, distill, encoded, models
from edgekit.pipeline.signals import Signals, Teacher, Wanted
from edgekit.recipe import Distill, Recipe
from edgekit.records import Artifact, Facts
from edgekit.tasks import Feature, pad

EVERYTHING: Wanted = frozenset({
    ("outputs", 0), ("hidden", 0), ("hidden", 2), ("scores", 1), ("queries", 2), ("keys", 2), ("values", 1),
})  # fmt: skip
KINDS = ("text-classification", "token-classification", "question-answering", "sentence-embedding")


def rows(count: int = 12, seed: int = 0) -> list[Feature]:
    rng = np.random.default_rng(seed)
    return [
        Feature(
            {
                "input_ids": rng.integers(5, 60, n),
                "attention_mask": np.ones(n, int),
                "token_type_ids": np.zeros(n, int),
            },
            i,
        )
        for i, n in enumerate(rng.integers(3, 12, count))
    ]


def images(count: int = 6) -> list[Feature]:
    rng = np.random.default_rng(0)
    return [Feature({"pixel_values": rng.normal(size=(3, 32, 32)).astype(np.float32)}, i) for i in range(count)]


def batch_of(features: list[Feature], chosen: list[int], pad_id: int = 0) -> dict[str, torch.Tensor]:
    padded = pad([features[i] for i in chosen], pad_id)
    return {"index": torch.tensor(chosen), **{name: torch.from_numpy(array) for name, array in padded.items()}}


class Heard(Teacher):
    """Counts the rows that it has to speak of."""

    spoken = 0

    def speak(self, batch: object) -> Signals:
        self.spoken += len(batch["input_ids"]) if "input_ids" in batch else len(batch["pixel_values"])  # type: ignore
        return super().speak(batch)  # type: ignore[arg-type]


def teacher_of(folder: Path, features: list[Feature], root: Path, kind: str = "text-classification", gb: float = 1.0):
    labels = () if kind in ("question-answering", "sentence-embedding") else ("negative", "positive")
    found = Heard(folder, kind, labels)  # type: ignore[arg-type]
    lengths = encoded.lengths(features)
    identity = encoded.fingerprint(features) if lengths is not None else "images"
    kept = found.kept = cache.Cache(root / "signals", found, identity, len(features), lengths, gb)
    return found, kept


def same(kept: Signals, live: Signals, wanted: Wanted) -> None:
    """What is wanted is there, equal to float16 where a token is real and 0 where it is not; the rest is not there."""
    assert torch.equal(kept.mask, live.mask) and kept.depth == live.depth
    real = live.mask.bool()

    def check(found: torch.Tensor, true: torch.Tensor, where: torch.Tensor) -> None:
        assert found.dtype == torch.float32 and found.shape == true.shape
        where = where.expand(true.shape)
        assert torch.allclose(found[where], true[where], rtol=1e-3, atol=3e-3)
        assert not found[~where].any()

    for name, true in live.outputs.items() if ("outputs", 0) in wanted else ():
        per_token = true.dim() == 3 or name.endswith("_logits")
        where = (real[..., None] if true.dim() == 3 else real) if per_token else torch.ones(1, dtype=torch.bool)
        check(kept.outputs[name], true, where)
    for part, layer in wanted - {("outputs", 0)}:
        if part == "scores":
            check(kept.scores(layer), live.scores(layer), real[:, None, :, None] & real[:, None, None, :])
        elif part == "hidden":
            check(kept.hidden[layer], live.hidden[layer], real[..., None])
        else:
            check(getattr(kept, part)[layer], getattr(live, part)[layer], real[:, None, :, None])
    assert set(kept.hidden) == {layer for part, layer in wanted if part == "hidden"}


@pytest.mark.parametrize(
    ("family", "kind"), [*((f, KINDS[0]) for f in tiny.TEXT_FAMILIES), *(("bert", kind) for kind in KINDS[1:])]
)
def test_kept_signals_are_the_live_ones(family: str, kind: str, tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "teacher", family, kind)
    features = rows()
    teacher, _ = teacher_of(folder, features, tmp_path, kind)
    for chosen in ([3, 1, 4], [0, 3, 5, 1], list(range(12))):
        batch = batch_of(features, chosen, teacher.pad_id)
        same(teacher(batch, EVERYTHING), teacher.speak(batch), EVERYTHING)


def test_images(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "teacher", "vit", "image-classification")
    features = images()
    teacher, _ = teacher_of(folder, features, tmp_path, "image-classification")
    for chosen in ([3, 1], [0, 3, 5, 1]):
        batch = batch_of(features, chosen)
        same(teacher(batch, EVERYTHING), teacher.speak(batch), EVERYTHING)
    again, _ = teacher_of(folder, features, tmp_path, "image-classification")
    same(again(batch, EVERYTHING), teacher.speak(batch), EVERYTHING)
    assert again.spoken == 0


def test_the_teacher_speaks_once_of_a_row_and_a_second_run_hears_the_very_same(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "teacher", "bert")
    features = rows()
    teacher, _ = teacher_of(folder, features, tmp_path)
    batches = [batch_of(features, chosen) for chosen in ([0, 1, 2, 3], [2, 3, 4, 5], [4, 0, 6, 11])]
    first = [teacher(batch, EVERYTHING) for batch in batches]
    assert teacher.spoken == 4 + 8 + 0, "the first batch tells the shapes, then each row comes once"
    again, _ = teacher_of(folder, features, tmp_path)
    for batch, before in zip(batches, first, strict=True):
        now = again(batch, EVERYTHING)
        assert torch.equal(now.hidden[2], before.hidden[2]) and torch.equal(now.scores(1), before.scores(1))
        assert torch.equal(now.outputs["logits"], before.outputs["logits"])
    assert again.spoken == 0 and "speaker" not in vars(again), "it was not even loaded"


def test_another_method_adds_what_it_wants(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "teacher", "bert")
    features = rows()
    teacher, kept = teacher_of(folder, features, tmp_path)
    batch = batch_of(features, [0, 1, 2])
    one, other = frozenset({("hidden", 1)}), frozenset({("hidden", 1), ("hidden", 2)})
    before = teacher(batch, one).hidden[1]  # type: ignore[arg-type]
    bytes_before = (kept.folder / "hidden.1.32.f16").read_bytes()
    assert torch.equal(teacher(batch, other).hidden[1], before)  # type: ignore[arg-type]
    assert (kept.folder / "hidden.1.32.f16").read_bytes() == bytes_before
    assert sorted(p.name for p in kept.folder.glob("*.f16")) == ["hidden.1.32.f16", "hidden.2.32.f16"]


def test_scores_of_long_sequences_are_kept_as_queries_and_keys(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "teacher", "bert")  # heads of 8: beyond 16 tokens the scores are larger
    rng = np.random.default_rng(0)
    features = [Feature({name: np.ones(n, int) for name in ("input_ids", "attention_mask", "token_type_ids")}, 0)
                for n in rng.integers(20, 40, 4)]  # fmt: skip
    teacher, kept = teacher_of(folder, features, tmp_path)
    wanted: Wanted = frozenset({("scores", 1)})
    batch = batch_of(features, [0, 1, 2, 3])
    same(teacher(batch, wanted), teacher.speak(batch), wanted)
    assert sorted(p.name for p in kept.folder.glob("*.f16")) == ["keys.1.4x8.f16", "queries.1.4x8.f16"]


def test_a_batch_that_is_not_of_the_data_is_answered_live(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "teacher", "bert")
    features = rows()
    teacher, _ = teacher_of(folder, features, tmp_path)
    batch = batch_of(features, [0, 1])
    del batch["index"]
    live = teacher.speaker(batch)
    assert torch.equal(teacher(batch, frozenset({("hidden", 2)})).hidden[2], live.hidden[2])


def test_the_key_is_teacher_tokenizer_and_sequences(tmp_path: Path) -> None:
    one, other = (tiny.make(tmp_path / name, "bert", seed=seed) for name, seed in (("one", 0), ("other", 1)))
    features = rows()
    folders = [
        teacher_of(one, features, tmp_path)[1].folder,
        teacher_of(one, rows(), tmp_path)[1].folder,
        teacher_of(other, features, tmp_path)[1].folder,
        teacher_of(one, rows(seed=1), tmp_path)[1].folder,
    ]
    (one / "tokenizer.json").write_text((one / "tokenizer.json").read_text() + "\n")
    folders.append(teacher_of(one, features, tmp_path)[1].folder)
    assert folders[0] == folders[1] and len(set(folders)) == 4


def test_another_teachers_signals_are_refused(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "teacher", "bert")
    _, kept = teacher_of(folder, rows(), tmp_path)
    meta = json.loads((kept.folder / "meta.json").read_text())
    (kept.folder / "meta.json").write_text(json.dumps({**meta, "teacher": "0" * 64}))
    with pytest.raises(InputError, match=f"another teacher.*remove the folder {kept.folder}"):
        teacher_of(folder, rows(), tmp_path)


@pytest.mark.parametrize("name", ["hidden.2.32.f16", "hidden.2.32.crc"])
def test_a_file_of_the_wrong_size_is_refused(name: str, tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "teacher", "bert")
    features = rows()
    wanted: Wanted = frozenset({("hidden", 2)})
    teacher, kept = teacher_of(folder, features, tmp_path)
    teacher(batch_of(features, [0, 1]), wanted)
    os.truncate(kept.folder / name, 100)
    again, _ = teacher_of(folder, features, tmp_path)
    with pytest.raises(InputError, match=rf"{name}: has 100 bytes.*remove the folder"):
        again(batch_of(features, [0, 1]), wanted)


def test_what_a_loss_of_power_left_is_made_again(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "teacher", "bert")
    features = rows()
    wanted: Wanted = frozenset({("hidden", 2)})
    batch = batch_of(features, [0, 1, 2])
    teacher, kept = teacher_of(folder, features, tmp_path)
    true = teacher(batch, wanted).hidden[2]
    kept.close()
    with (kept.folder / "hidden.2.32.f16").open("r+b") as file:
        file.write(bytes(64))  # the first token of the first row; its checksum is still there
    again, _ = teacher_of(folder, features, tmp_path)
    assert torch.allclose(again(batch, wanted).hidden[2], true, atol=3e-3)
    assert again.spoken == 1


def test_values_beyond_float16_are_live(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.make(tmp_path / "teacher", "bert")
    model = models.load(folder, "text-classification")
    model.classifier.weight.data.mul_(1e8)  # type: ignore[union-attr]
    models.save(model, folder)
    features = rows()
    teacher, _ = teacher_of(folder, features, tmp_path)
    batch = batch_of(features, [0, 1])
    for _ in range(2):
        assert torch.equal(teacher(batch).outputs["logits"], teacher.speak(batch).outputs["logits"])
    assert capsys.readouterr().err.count("outputs.logits of the teacher is beyond float16") == 1


def test_the_size_is_bounded_and_the_oldest_give_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.make(tmp_path / "teacher", "bert")
    features = rows()
    size = int(sum(len(f.inputs["input_ids"]) for f in features)) * 32 * 2
    batch = batch_of(features, [0, 1])

    def hear(layer: int, gb: float) -> list[str]:
        teacher, kept = teacher_of(folder, features, tmp_path, gb=gb)
        teacher(batch, frozenset({("hidden", layer)}))
        kept.close()
        return sorted(p.name.split(".")[1] for p in kept.folder.glob("*.f16"))

    assert hear(0, 0.9 * size / 1e9) == []
    said = capsys.readouterr().err
    assert re.search(r"the teacher's signals would take \S+ GB, cache_gb is \S+; the teacher runs in every step", said)
    limit = 2.1 * size / 1e9
    assert hear(0, limit) == ["0"]
    assert hear(1, limit) == ["0", "1"]
    os.utime(next((tmp_path / "signals").glob("*/hidden.0.*.f16")), (1e9, 1e9))
    assert hear(2, limit) == ["1", "2"]
    busy, _kept = teacher_of(folder, features, tmp_path, gb=limit)
    busy(batch, frozenset({("hidden", 1), ("hidden", 2)}))
    assert hear(0, limit) == ["1", "2"], "what another run reads stays"
    assert "in use" in capsys.readouterr().err


def test_a_full_disk_is_an_error_that_the_store_knows(tmp_path: Path) -> None:
    if not os.access("/dev/full", os.W_OK):
        pytest.skip("no /dev/full")
    folder = tiny.make(tmp_path / "teacher", "bert")
    features = rows()
    teacher, kept = teacher_of(folder, features, tmp_path)
    wanted: Wanted = frozenset({("hidden", 2)})
    teacher(batch_of(features, [0, 1]), wanted)
    file = kept._files["hidden.2"]  # pyright: ignore[reportPrivateUsage]
    with open("/dev/full", "r+b", buffering=0) as full:  # every write to it fails as a full disk does
        os.dup2(full.fileno(), file._data)  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(OSError, match="No space left"):
        teacher(batch_of(features, [2, 3]), wanted)


def test_two_at_once(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "teacher", "bert")
    features = rows(40)
    wanted: Wanted = frozenset({("hidden", 2), ("scores", 1)})
    order = [list(range(i, i + 4)) for i in range(0, 40, 4)]

    def hear(order: list[list[int]]) -> None:
        teacher, _ = teacher_of(folder, features, tmp_path)
        for chosen in order:
            teacher(batch_of(features, chosen), wanted)

    with ThreadPoolExecutor(2) as pool:  # each with files of its own, as two processes have them
        list(pool.map(hear, (order, order)))
    again, _ = teacher_of(folder, features, tmp_path)
    for chosen in order:
        batch = batch_of(features, chosen)
        same(again(batch, wanted), teacher_of(folder, features, tmp_path)[0].speaker(batch), wanted)
    assert again.spoken <= 8, "only what both wrote at the same moment may not fit its checksum"


def test_a_training_with_kept_signals_is_that_with_live_ones(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "teacher", "bert", num_hidden_layers=4)
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text("".join(
            json.dumps({"text": text, "label": "negative" if "bad" in text else "positive"}) + "\n"
            for text in tiny.TEXTS * 3
        ))  # fmt: skip
    training = {"epochs": 3, "batch_size": 4, "learning_rate": 1e-3, "precision": "float32"}
    recipe = Recipe.model_validate({
        "name": "x", "max_length": 32, "task": {"name": "text_classification"},
        "data": {"name": "files", "train": "train.jsonl", "dev": "dev.jsonl"},
        "step": [{"stage": "teach", "model": "teacher"}, {"stage": "distill", "layers": 2, "training": training}],
    })  # fmt: skip
    step = recipe.step[1]
    assert isinstance(step, Distill)
    facts = Facts(bytes=0, changed="")
    artifact = Artifact(id="", name="", stage="", parents=(), files=(), facts=facts, seconds=0, versions={})
    its = Made(artifact, folder)

    def train(name: str, shared: Path | None) -> dict[str, torch.Tensor]:
        data = TaskData(recipe, tmp_path, shared)
        job = Job(recipe, recipes.target("host"), data, {"model": its, "teacher": its}, tmp_path, tmp_path / name)
        torch.manual_seed(0)
        student, _ = distill.new_student(step, models.load(folder, data.kind, data.labels), job)
        features = data.features("train", folder)
        distill.train_student(student, [folder], step.method, step.training, job, features)
        return student.state_dict()

    live, cold, warm = train("live", None), train("cold", tmp_path / "store"), train("warm", tmp_path / "store")
    assert list((tmp_path / "store" / "signals").glob("*/hidden.4.32.f16"))
    for name, weight in live.items():
        assert torch.equal(cold[name], warm[name]), name
        assert torch.allclose(cold[name], weight, atol=5e-4), name


def test_the_folder_of_what_has_given_way_is_gone(tmp_path: Path) -> None:
    one, other = (tiny.make(tmp_path / name, "bert", seed=seed) for name, seed in (("one", 0), ("other", 1)))
    features = rows()
    size = int(sum(len(f.inputs["input_ids"]) for f in features)) * 32 * 2
    folders: list[Path] = []
    for folder in (one, other):
        teacher, kept = teacher_of(folder, features, tmp_path, gb=1.5 * size / 1e9)
        teacher(batch_of(features, [0, 1]), frozenset({("hidden", 1)}))
        kept.close()
        folders.append(kept.folder)
    assert [folder.exists() for folder in folders] == [False, True]
