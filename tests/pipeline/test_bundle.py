"""The bundle stage: what it puts into the folder, and the budgets that it checks."""

import dataclasses
import json
import re
from pathlib import Path

import bundles
import onnx
import pytest

from edgekit import bundle as reader
from edgekit.errors import InputError, NotGoodEnough
from edgekit.pipeline import Job, Made
from edgekit.pipeline import bundle as stage
from edgekit.records import Budget, Facts, Metric, Score


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A small model as ONNX, and the bundle stage not yet run."""
    return bundles.prepared(tmp_path_factory.mktemp("stage") / "b", formats=("onnx",))


def into(job: Job, folder: Path, budgets: tuple[Budget, ...] = ()) -> Job:
    folder.mkdir()
    return dataclasses.replace(job, out=folder, target=job.target.model_copy(update={"budgets": budgets}))


def test_holds_what_an_app_needs_once(prepared: Job, tmp_path: Path) -> None:
    facts = stage.run(None, into(prepared, tmp_path / "out"))
    folder = tmp_path / "out" / "bundle"
    manifest = reader.verify(folder)
    assert [sorted(inputs) for inputs in reader.examples(folder, folder)] == [
        ["attention_mask", "input_ids", "token_type_ids"]
    ] * 2
    assert [file.path for file in manifest.files] == [
        "README.md", "examples.npz", "labels.json", "onnx/config.json", "onnx/model.onnx", "onnx/tokenizer.json",
        "onnx/tokenizer_config.json", "samples/kotlin/Model.kt", "samples/kotlin/Text.kt",
        "samples/kotlin/WordPiece.kt", "samples/python/run.py",
    ]  # fmt: skip
    assert json.loads((folder / "labels.json").read_text()) == ["negative", "positive"] == list(manifest.labels)
    (model,) = manifest.models
    source = prepared.parents["export:onnx"].artifact.facts
    assert (model.inputs, model.parity, model.score) == (source.inputs, source.parity, source.score)
    assert sum(part.bytes for part in model.parts) == (folder / model.path).stat().st_size
    assert {"embeddings", "layer 1 attention", "head"} < {part.name for part in model.parts}
    assert (model.lengths, model.quantized, manifest.encoder) == ((16, 32), False, "onnx")
    assert [artifact.name for artifact in manifest.stages] == ["teach", "export-onnx"]
    assert facts.bytes == (folder / "onnx" / "model.onnx").stat().st_size
    assert (facts.score, facts.parameters) == (source.score, 1000)
    assert manifest.digest[:16] in facts.changed


def test_equal_inputs_give_equal_bytes(prepared: Job, tmp_path: Path) -> None:
    for name in ("a", "b"):
        stage.run(None, into(prepared, tmp_path / name))
    a, b = (reader.pack(tmp_path / name / "bundle") for name in ("a", "b"))
    assert a.read_bytes() == b.read_bytes()


def test_ships_the_quantized_model_where_there_is_one(prepared: Job, tmp_path: Path) -> None:
    small = tmp_path / "int8"
    small.mkdir()
    empty = onnx.ModelProto(ir_version=8, producer_name="").SerializeToString()  # four bytes
    (small / "model.onnx").write_bytes(empty)
    score = Score(metric="accuracy", value=0.75, examples=4, parts=(Metric(name="f1", value=0.5, support=3),))
    facts = Facts(bytes=4, changed="int8", score=score, latency_s=0.001, float_latency_s=0.002)
    quantized = bundles.made("quantize-onnx", "quantize", small, facts)
    parents: dict[str, Made] = {**prepared.parents, "quantize:onnx": quantized}
    found = stage.run(None, dataclasses.replace(into(prepared, tmp_path / "out"), parents=parents))
    manifest = reader.verify(tmp_path / "out" / "bundle")
    assert (tmp_path / "out" / "bundle" / "onnx" / "model.onnx").read_bytes() == empty
    assert (manifest.models[0].quantized, manifest.models[0].score, found.bytes) == (True, score, 4)
    assert [part.model_dump() for part in manifest.models[0].parts] == [{"name": "other", "bytes": 4}]
    card = (tmp_path / "out" / "bundle" / "README.md").read_text()
    assert "| onnx | accuracy 0.7500 | f1 0.500 of 3 | 1.00 | 2.00 |" in card
    assert "onnx/model.onnx (int8)" in card


def test_the_card_says_what_is_not_known(prepared: Job, tmp_path: Path) -> None:
    device = Budget(metric="latency_s", limit=0.01)
    facts = stage.run(None, into(prepared, tmp_path / "out", (device, Budget(metric="size_bytes", limit=10**9))))
    card = (tmp_path / "out" / "bundle" / "README.md").read_text()
    assert "licence: not stated" in card
    assert "Budget: latency_s <= 0.01, not measured yet" in card
    assert "Budget: size_bytes <= 1000000000, kept" in card
    assert facts.notes == ("budget latency_s <= 0.01: to be measured on the device",)


def test_the_card_repeats_the_teachers_licence(prepared: Job, tmp_path: Path) -> None:
    path = prepared.data.base / "model" / "README.md"
    path.write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A teacher\n")
    stage.run(None, into(prepared, tmp_path / "out"))
    path.unlink()
    assert "licence: apache-2.0" in (tmp_path / "out" / "bundle" / "README.md").read_text()


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (Budget(metric="size_bytes", limit=1000), r"the onnx model has \d+ bytes, the budget size_bytes is 1000"),
        (Budget(metric="score", limit=1.5), r"\(export-onnx\) has accuracy [01]\.\d+, the budget score is 1.5"),
    ],
)
def test_budget_not_kept(prepared: Job, tmp_path: Path, budget: Budget, said: str) -> None:
    with pytest.raises(NotGoodEnough, match=said):
        stage.run(None, into(prepared, tmp_path / "required", (budget,)))
    assert not list((tmp_path / "required").iterdir())
    wished = budget.model_copy(update={"required": False})
    (note,) = stage.run(None, into(prepared, tmp_path / "wished", (wished,))).notes
    assert re.search(said, note)


def test_format_that_was_not_exported(prepared: Job, tmp_path: Path) -> None:
    job = into(prepared, tmp_path / "out")
    target = job.target.model_copy(update={"formats": ("onnx", "tflite")})
    with pytest.raises(InputError, match="wants tflite and the recipe exports none"):
        stage.run(None, dataclasses.replace(job, target=target))


def test_other_models_get_other_samples(tmp_path: Path) -> None:
    folder, _ = bundles.make(tmp_path / "roberta", "roberta", formats=("onnx",))
    assert sorted(p.name for p in (folder / "samples" / "kotlin").iterdir()) == ["Model.kt", "Text.kt"]
    assert "no tokenizer" in (folder / "README.md").read_text()
    folder, _ = bundles.make(tmp_path / "vit", "vit", "image-classification", formats=("onnx",))
    assert sorted(p.name for p in (folder / "samples" / "kotlin").iterdir()) == ["Image.kt", "Model.kt"]
    assert reader.verify(folder).models[0].lengths == ()


def test_samples_are_part_of_what_makes_a_bundle() -> None:
    assert len(stage.samples_fingerprint()) == 5
