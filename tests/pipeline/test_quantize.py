import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch

from edgekit import infer, plugins, progress
from edgekit.errors import NotGoodEnough
from edgekit.pipeline import Job, Made, TaskData, quantize
from edgekit.recipe import Quantize, Recipe
from edgekit.records import Artifact, Facts, Target

LENGTHS = (8, 16)


class Outlier(torch.nn.Module):
    """A classifier whose layer `after_outlier` takes one huge value, which it ignores.

    In float that changes nothing. In int8 the huge value sets the scale, and all others are rounded to zero.
    """

    def __init__(self, vocabulary: int, outlier: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(vocabulary, 32)
        self.before = torch.nn.Linear(32, 32)
        self.after_outlier = torch.nn.Linear(32, 32)
        self.head = torch.nn.Linear(32, 2, bias=False)
        with torch.no_grad():
            self.words.weight[:5] = 0  # special tokens; the words are spread around 0, so both labels come up
            self.before.bias.zero_()
            self.before.bias[0] = outlier
            self.after_outlier.weight[:, 0] = 0
            self.after_outlier.bias.zero_()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        mask = attention_mask.unsqueeze(-1).to(torch.float32)
        mean = (self.before(self.words(input_ids)) * mask).sum(1) / mask.sum(1)
        return {"logits": self.head(self.after_outlier(mean))}


def write(model: torch.nn.Module, format: str, path: Path) -> None:
    names = ("input_ids", "attention_mask")
    if format == "onnx":
        size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
        inputs = {name: torch.ones(2, 6, dtype=torch.int64) for name in names}
        torch.onnx.export(
            model, kwargs=inputs, input_names=names, output_names=["logits"], dynamo=True, verbose=False,
            dynamic_shapes=dict.fromkeys(names, size), f=path, external_data=False,
        )  # fmt: skip
        return
    import litert_torch

    converter = litert_torch
    for length in LENGTHS:
        given = {name: torch.ones(1, length, dtype=torch.int32) for name in names}
        converter = converter.signature(f"len_{length}", model, sample_kwargs=given)
    converter.convert().export(str(path))


@pytest.fixture(autouse=True)
def quick_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infer, "latency", partial(infer.latency, budget_s=0))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(format, outlier) to the folder of its float model, tokenizer and rows that the float model is all right on."""
    base = tmp_path_factory.mktemp("made")
    tokenizer = families.make(base / "model", "bert")
    vocabulary = json.loads((tokenizer / "config.json").read_text())["vocab_size"]
    known: dict[tuple[str, float], Path] = {}

    def make(format: str, outlier: float) -> tuple[Path, Path]:
        folder = base / f"{format}-{outlier}"
        if (format, outlier) not in known:
            folder.mkdir()
            with progress.quiet():
                write(Outlier(vocabulary, outlier).eval(), format, folder / f"model.{format}")
            rows(folder, tokenizer, infer.open_model(folder / f"model.{format}"))
            known[format, outlier] = folder
        return folder, tokenizer

    return make


def rows(folder: Path, tokenizer: Path, session: infer.Session) -> None:
    """Texts with the float model's answer as the label: of each label the 50 that it is surest of."""
    from tokenizers import Tokenizer

    encode, random = Tokenizer.from_file(str(tokenizer / "tokenizer.json")), np.random.default_rng(0)
    words = " ".join(families.TEXTS).split()
    texts = [" ".join(random.choice(words, 4)) for _ in range(400)]
    feeds = [np.array([encode.encode(text).ids[:16]]) for text in texts]
    logits = [session({"input_ids": ids, "attention_mask": np.ones_like(ids)})["logits"][0] for ids in feeds]
    order = sorted(range(len(texts)), key=lambda i: float(logits[i][1] - logits[i][0]))
    sure = [i for pair in zip(order[:50], order[-50:], strict=True) for i in pair]
    labels = ("negative", "positive")
    lines = [json.dumps({"text": texts[i], "label": labels[int(logits[i].argmax())]}) for i in sure]
    for split in ("train", "dev"):
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")


def job(made: tuple[Path, Path], format: str, out: Path) -> Job:
    folder, tokenizer = made
    recipe = Recipe.model_validate(
        {
            "name": "test",
            "max_length": 16,
            "task": {"name": "text_classification", "text": "text", "label": "label"},
            "data": {"name": "files", "train": "train.jsonl", "dev": "dev.jsonl"},
            "step": [{"stage": "teach", "model": "model"}, {"stage": "export"}, {"stage": "quantize"}],
        }
    )
    target = Target.model_validate(
        {"name": "t", "description": "", "abi": "host", "formats": [format], "lengths": LENGTHS}
    )

    def artifact(stage: str) -> Artifact:
        facts = Facts(bytes=1, changed="", parameters=1234)
        return Artifact(id="0", name=stage, stage=stage, parents=(), files=(), facts=facts, seconds=0, versions={})

    parents = {"model": Made(artifact("teach"), tokenizer), "export": Made(artifact("export"), folder)}
    out.mkdir()
    return Job(recipe, target, TaskData(recipe, folder), parents, out, out.parent / "scratch", format)  # type: ignore[arg-type]


def step(**values: Any) -> Quantize:
    return Quantize(stage="quantize", **{"must_be_faster": False, "calibration_rows": 100, **values})


@pytest.mark.parametrize("mode", ["dynamic", "static"])
@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_a_good_model_is_quantized_whole(made: Any, tmp_path: Path, format: str, mode: str) -> None:
    work = job(made(format, 0.0), format, tmp_path / "out")
    facts = quantize.run(step(mode=mode, max_drop=0.1), work)
    path = work.out / f"model.{format}"
    assert list(work.out.iterdir()) == [path]
    assert facts.bytes == path.stat().st_size < (work.parents["export"].folder / path.name).stat().st_size
    assert facts.score and facts.score.value >= 0.9 and facts.score.examples == 100
    assert facts.refused == () and facts.sensitivity == () and mode in facts.changed
    assert facts.parameters == 1234 and facts.format == format
    assert {tensor.name for tensor in facts.inputs} == {"input_ids", "attention_mask"}
    assert facts.latency_s and facts.float_latency_s
    layers = plugins.load("quantizers", format).layers(path)
    assert len(layers) == 4 and {layer.dtype for layer in layers} == {"int8"}


@pytest.mark.parametrize("mode", ["dynamic", "static"])
@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_the_layer_that_costs_the_score_is_found_and_left_in_float(
    made: Any, tmp_path: Path, format: str, mode: str
) -> None:
    # LiteRT's static layers round what they give too, so the layer before rounds the outlier's neighbours as well
    costly = {"after_outlier"} | ({"before"} if (format, mode) == ("tflite", "static") else set())
    work = job(made(format, 3000.0), format, tmp_path / "out")
    facts = quantize.run(step(mode=mode, max_drop=0.1), work)
    assert facts.refused == ()
    assert {layer.layer for layer in facts.sensitivity} == {"words", "before", "after_outlier", "head"}
    assert {layer.layer for layer in facts.sensitivity if layer.kept} == costly
    for layer in facts.sensitivity:
        assert (layer.drop > 0.2) == (layer.layer in costly)
    assert facts.score and facts.score.value >= 0.9
    assert "in float: " in facts.changed and "after_outlier" in facts.changed
    layers = plugins.load("quantizers", format).layers(work.out / f"model.{format}")
    assert {layer.name for layer in layers if layer.dtype == "float32"} == costly


def test_a_score_that_cannot_be_reached_is_refused_with_the_worst_layers(made: Any, tmp_path: Path) -> None:
    work = job(made("onnx", 3000.0), "onnx", tmp_path / "out")
    facts = work.parents["export"].artifact.facts
    score = quantize.run(step(max_drop=None), work).score
    assert score is not None
    # a float model that was better than any that can be made from it
    facts = facts.model_copy(update={"score": score.model_copy(update={"value": 1.5})})
    artifact = work.parents["export"].artifact.model_copy(update={"facts": facts})
    parents = {**work.parents, "export": Made(artifact, work.parents["export"].folder)}
    with pytest.raises(NotGoodEnough) as refused:
        quantize.run(step(max_drop=0.1), Job(**{**vars(work), "parents": parents}))
    message = str(refused.value)
    assert "dynamic: accuracy fell from 1.5000" in message and "static: accuracy fell from 1.5000" in message
    assert "max_drop = 0.1" in message and "cost most: after_outlier" in message


def test_a_mode_that_is_not_faster_is_refused_for_the_other(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([(0.002, 0.003), (0.002, 0.001)])
    monkeypatch.setattr(infer, "latency", lambda sessions, feeds: next(seconds))  # the clock
    work = job(made("onnx", 0.0), "onnx", tmp_path / "out")
    facts = quantize.run(step(mode="static", must_be_faster=True, max_drop=0.1), work)
    assert facts.refused == (
        "static: not faster on this host: 3.00 ms, float 2.00 ms (batch 1, length 16, one thread)",
    )
    assert facts.changed.startswith("onnx: int8 dynamic, 2.0 times as fast")
    assert (facts.latency_s, facts.float_latency_s) == (0.001, 0.002)


def test_no_faster_mode_stops_the_build(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infer, "latency", lambda sessions, feeds: (0.002, 0.002))  # the clock
    work = job(made("onnx", 0.0), "onnx", tmp_path / "out")
    with pytest.raises(NotGoodEnough) as refused:
        quantize.run(step(must_be_faster=True, max_drop=0.1), work)
    assert "dynamic: not faster" in str(refused.value) and "static: not faster" in str(refused.value)


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_a_file_in_which_nothing_is_quantized_is_refused(made: Any, tmp_path: Path, format: str) -> None:
    source = made(format, 0.0)[0] / f"model.{format}"
    copy = Path(shutil.copy(source, tmp_path / source.name))
    with pytest.raises(NotGoodEnough, match=r"is not quantized: 0 of [\d,]+ weights are int8.*still float: words"):
        quantize.check(plugins.load("quantizers", format), source, copy)


def test_a_file_with_one_layer_left_out_is_refused_unless_it_was_to_be(made: Any, tmp_path: Path) -> None:
    quantizer, source = plugins.load("quantizers", "onnx"), made("onnx", 0.0)[0] / "model.onnx"
    quantizer.quantize(source, tmp_path / "model.onnx", keep_float=["before"])
    with pytest.raises(NotGoodEnough, match="still float: before"):
        quantize.check(quantizer, source, tmp_path / "model.onnx")
    quantize.check(quantizer, source, tmp_path / "model.onnx", ["before"])
