"""Every family in both formats beside torch, and the traps that an export can fall into unseen."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from families import FAMILIES, TEXTS, make

from edgekit import infer, progress
from edgekit.errors import NotGoodEnough
from edgekit.infer import Session
from edgekit.pipeline import Job, Made, TaskData, export, models
from edgekit.pipeline.exporters import onnx as onnx_exporter
from edgekit.pipeline.exporters import tflite as tflite_exporter
from edgekit.pipeline.models import Exportable
from edgekit.recipe import Export, Recipe
from edgekit.records import Artifact, Facts, Kind, Runtime, Target, Tensor
from edgekit.tasks import OUTPUTS, Arrays, pad

KINDS: dict[str, Kind] = {
    "bert": "token-classification",
    "distilbert": "question-answering",
    "electra": "text-classification",
    "roberta": "sentence-embedding",
    "albert": "question-answering",
    "mobilebert": "text-classification",
    "mpnet": "sentence-embedding",
    "deberta-v2": "token-classification",
    "vit": "image-classification",
}
"""Each family with one kind of head, each kind at least once."""
SHARING = ("albert", "mpnet", "deberta-v2")
"""Their layers share weights, a bias or position embeddings, so two are exported; of the others one says it all."""
LENGTHS = (24,)


def _exportable(
    folder: Path, family: str = "bert", kind: Kind = "token-classification", seed: int = 0, **config: int
) -> Exportable:
    return Exportable(models.load(make(folder, family, kind, seed=seed, **config), kind), kind).eval()


def _batch(model: Exportable, length: int = 24) -> Arrays:
    return pad(export.made_up(model, 2, length), models.pad_id(model.model))


def _write(model: Exportable, path: Path, lengths: tuple[int, ...] = LENGTHS) -> Session:
    exporter = onnx_exporter if path.suffix == ".onnx" else tflite_exporter
    tensors = {name: torch.from_numpy(array) for name, array in _batch(model, lengths[-1]).items()}
    with progress.quiet():
        exporter.export(model, tensors, lengths, path)
    return infer.open_model(path)


@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_agrees_with_torch(family: str, suffix: str, tmp_path: Path) -> None:
    layers = {} if family in SHARING else {"n_layers" if family == "distilbert" else "num_hidden_layers": 1}
    model = _exportable(tmp_path, family, KINDS[family], **layers)
    session = _write(model, tmp_path / f"model{suffix}")
    assert {t.name for t in session.outputs} == set(model.output_names)
    export.check_inputs(session, model, _batch(model))
    found = export.check_outputs(session, model, LENGTHS, export.made_up(model, 5, 19), 1e-5)
    assert {parity.output for parity in found} == set(OUTPUTS[KINDS[family]])
    if family != "vit":
        assert {(parity.batch, parity.length) for parity in found} == {(1, 24), (3, 24), (2, 12), (5, 19)}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mask_made_for_export_says_what_transformers_says(family: str, tmp_path: Path) -> None:
    model = _exportable(tmp_path, family, KINDS[family])
    batch = _batch(model)
    with torch.no_grad():
        exported = model(**{name: torch.from_numpy(array) for name, array in batch.items()})
    plain = models.runner(model.model, model.kind)(batch)
    for name, output in plain.items():
        seen = np.s_[:1] if output.shape[1:2] == (24,) else np.s_[:]  # the second row is padded
        np.testing.assert_allclose(exported[name].numpy()[seen], output[seen], atol=1e-5)


def test_tflite_lengths_share_their_weights_and_the_bytes_are_always_the_same(tmp_path: Path) -> None:
    model = _exportable(
        tmp_path, num_hidden_layers=1, hidden_size=128, intermediate_size=512
    )  # weights outweigh the graphs
    path, again = tmp_path / "model.tflite", tmp_path / "again.tflite"
    session = _write(model, path, (8, 16))
    assert session.inputs[0].shape == (1, 16)
    assert path.stat().st_size < 1.5 * 4 * models.parameters(model)
    _write(model, again, (8, 16))
    assert again.read_bytes() == path.read_bytes()


def test_onnx_holds_its_weights_and_nothing_of_this_machine_nor_this_moment(tmp_path: Path) -> None:
    model = _exportable(tmp_path, num_hidden_layers=1)
    path, again = tmp_path / "out" / "model.onnx", tmp_path / "again.onnx"
    path.parent.mkdir()
    _write(model, path)
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]
    assert str(Path(export.__file__).parent).encode() not in path.read_bytes()
    graph = onnx.load(path).graph
    onnx.checker.check_model(path, full_check=True)
    assert [i.name for i in graph.input] == ["input_ids", "attention_mask", "token_type_ids"]
    assert {i.name for i in graph.input} <= {name for node in graph.node for name in node.input}
    _write(model, again)
    assert again.read_bytes() == path.read_bytes()


# The traps. Sessions here run torch itself with one thing wrong, as a broken file would.


def _session(model: Exportable, run: Callable[[Arrays], Arrays]) -> Session:
    inputs = tuple(Tensor(name=name, dtype="int64", shape=(-1, -1)) for name in model.input_names)
    return Session(Path("model.onnx"), inputs, (), lambda feeds: dict(run(feeds)))


def test_an_input_merged_with_another_is_caught(tmp_path: Path) -> None:
    """torch's ONNX exporter takes one tensor object given twice for one input, without a word."""
    model = _exportable(tmp_path, num_hidden_layers=1)
    ones = torch.ones(2, 8, dtype=torch.int64)
    with progress.quiet():
        torch.onnx.export(
            model, kwargs=dict.fromkeys(model.input_names, ones), f=tmp_path / "model.onnx", dynamo=True,
            input_names=list(model.input_names), output_names=["logits"],
            dynamic_shapes={name: {0: "batch", 1: "length"} for name in model.input_names},
        )  # fmt: skip
    session = infer.open_model(tmp_path / "model.onnx")
    with pytest.raises(NotGoodEnough, match=r"the input \w+ has no effect on any output; the exporter merged or dropp"):
        export.check_inputs(session, model, _batch(model))


def test_a_model_that_ignores_its_mask_is_caught(tmp_path: Path) -> None:
    model = _exportable(tmp_path)
    for name, parameter in model.named_parameters():
        if ".value." in name:
            torch.nn.init.zeros_(parameter)  # attention then adds nothing, whatever is masked
    session = _session(model, models.runner(model.model, model.kind))
    with pytest.raises(NotGoodEnough, match="attention_mask has no effect on any output; the torch model itself"):
        export.check_inputs(session, model, _batch(model))


def test_a_model_trained_without_segments_may_ignore_them(tmp_path: Path) -> None:
    model = _exportable(tmp_path)
    torch.nn.init.zeros_(model.get_parameter("model.bert.embeddings.token_type_embeddings.weight"))
    export.check_inputs(_session(model, models.runner(model.model, model.kind)), model, _batch(model))


def test_a_renamed_input_is_caught(tmp_path: Path) -> None:
    model = _exportable(tmp_path)
    whole = _session(model, models.runner(model.model, model.kind))
    with pytest.raises(NotGoodEnough, match="the exporter dropped or renamed an input"):
        export.check_inputs(replace(whole, inputs=whole.inputs[:2]), model, _batch(model))


def _unmasked(run: Callable[[Arrays], Arrays]) -> Callable[[Arrays], Arrays]:
    return lambda batch: run({**batch, "attention_mask": np.ones_like(batch["attention_mask"])})


def _only_at(length: int, run: Callable[[Arrays], Arrays]) -> Callable[[Arrays], Arrays]:
    return lambda batch: {n: o if batch["input_ids"].shape[1] == length else o + 1 for n, o in run(batch).items()}


def test_each_kind_of_difference_names_its_likely_cause(tmp_path: Path) -> None:
    model = _exportable(tmp_path / "a")
    run = models.runner(model.model, model.kind)
    other = models.runner(_exportable(tmp_path / "b", seed=1).model, model.kind)
    real = export.made_up(model, 4, 24)
    for wrong, cause in (
        (other, "so does every shape: an operator or the weights are not torch's"),
        (_unmasked(run), "one row without padding agrees: the attention mask is lost"),
        (_only_at(24, run), "length 24 agrees: a length is frozen in the graph"),
    ):
        with pytest.raises(
            NotGoodEnough, match=rf"logits differs from torch by [\d.]+ \(tolerance 0\.001\).*; {cause}"
        ):
            export.check_outputs(_session(model, wrong), model, (24,), real, 1e-3)


def test_an_output_that_is_no_number_is_caught(tmp_path: Path) -> None:
    model = _exportable(tmp_path)
    run = models.runner(model.model, model.kind)
    session = _session(model, lambda batch: {name: output * np.nan for name, output in run(batch).items()})
    with pytest.raises(NotGoodEnough, match=r"model\.onnx: logits is not finite on batch 1 x length 24"):
        export.check_outputs(session, model, (24,), [], 1e-3)


# The stage.


def _job(tmp_path: Path, format: str) -> Job:
    rows = [{"text": text, "label": ("negative", "positive")[i % 2]} for i, text in enumerate(TEXTS)]
    for split in ("train", "dev"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "max_length": 24,
            "task": {"name": "text_classification", "text": "text", "label": "label"},
            "data": {"name": "files", "train": "train.jsonl", "dev": "dev.jsonl"},
            "step": [{"stage": "teach", "model": "model"}, {"stage": "export"}],
        }
    )
    target = Target(
        name="t", description="", abi="host", formats=("onnx", "tflite"), lengths=(8, 24), runtime=Runtime()
    )
    folder = make(tmp_path / "model", "bert", num_hidden_layers=1)
    artifact = Artifact(
        id="0", name="teach", stage="teach", parents=(), files=(), facts=Facts(bytes=1, changed=""), seconds=0,
        versions={},
    )  # fmt: skip
    (out := tmp_path / "out").mkdir()
    parents = {"model": Made(artifact, folder)}
    return Job(recipe, target, TaskData(recipe, tmp_path), parents, out, tmp_path, format)  # type: ignore[arg-type]


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_the_stage_leaves_one_file_and_its_facts(
    tmp_path: Path, format: str, capfd: pytest.CaptureFixture[str]
) -> None:
    job = _job(tmp_path, format)
    capfd.readouterr()
    facts = export.run(Export(stage="export"), job)
    assert capfd.readouterr().out == ""
    path = job.out / f"model.{format}"
    assert list(job.out.iterdir()) == [path]
    model = models.load(job.parents["model"].folder, "text-classification")
    in_torch = job.data.score(models.predictor(model, "text-classification"), job.parents["model"].folder)
    assert facts.score == in_torch
    assert facts.bytes == path.stat().st_size
    assert facts.parameters == models.parameters(model)
    assert facts.format == format
    assert {t.name for t in facts.inputs} == {"input_ids", "attention_mask", "token_type_ids"}
    assert [t.name for t in facts.outputs] == ["logits"]
    assert {(p.batch, p.length) for p in facts.parity} >= {(1, 24), (3, 24), (2, 4)}
    assert max(p.max_abs_diff for p in facts.parity) < 1e-4
    assert facts.latency_s
    assert facts.latency_s > 0


def test_refusals_say_what_would_work(tmp_path: Path) -> None:
    bert = {"model_type": "bert", "max_position_embeddings": 64}
    assert export.refusal(bert, (32, 64), 64) is None
    assert "the model's 64; lower the target's lengths" in str(export.refusal(bert, (32, 128), 64))
    assert "max_length = 65 is more than the target's greatest length, 64" in str(export.refusal(bert, (64,), 65))
    roberta = {"model_type": "roberta", "max_position_embeddings": 66}
    assert export.refusal(roberta, (64,), 64) is None
    assert "the model's 64" in str(export.refusal(roberta, (65,), 64))
    assert export.refusal({"model_type": "vit"}, (32,), 128) is None
    assert 'family "gpt2" cannot be exported; these can' in str(export.refusal({"model_type": "gpt2"}, (32,), 32))
