"""Sessions on two small files made here: what they compute is known, so every number is checked."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from edgekit import infer, progress
from edgekit.errors import InputError
from edgekit.infer import Session
from edgekit.records import Tensor
from edgekit.tasks import Arrays, Feature


class _Tiny(torch.nn.Module):
    """`logits` [batch, length, 2]: each id and minus it where unmasked; `sentence_embedding`: the length it runs at."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        seen = (input_ids * attention_mask).float().unsqueeze(-1)
        return {
            "logits": torch.cat([seen, -seen], -1),
            "sentence_embedding": torch.ones_like(attention_mask).sum(1, keepdim=True).float(),
        }


@pytest.fixture(scope="module")
def tflite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import litert_torch

    path = tmp_path_factory.mktemp("tflite") / "model.tflite"
    converter = litert_torch
    with progress.quiet():
        for length in (8, 4):  # a session must not rely on their order
            inputs = {n: torch.ones(1, length, dtype=torch.int32) for n in ("input_ids", "attention_mask")}
            converter = converter.signature(f"len_{length}", _Tiny().eval(), sample_kwargs=inputs)
        converter.convert().export(str(path))
    return path


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    """`logits` [batch, length] = input_ids * attention_mask, as floats."""
    shape = ["batch", "length"]
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["input_ids", "attention_mask"], ["seen"]),
            helper.make_node("Cast", ["seen"], ["logits"], to=TensorProto.FLOAT),
        ],
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def test_onnx_takes_any_integer_type_and_ignores_what_it_does_not_know(onnx_file: Path) -> None:
    session = infer.open_model(onnx_file)
    assert session.inputs == (
        Tensor(name="input_ids", dtype="int64", shape=(-1, -1)),
        Tensor(name="attention_mask", dtype="int64", shape=(-1, -1)),
    )
    assert session.outputs == (Tensor(name="logits", dtype="float32", shape=(-1, -1)),)
    ids = np.array([[3, 4, 5], [6, 7, 0]], dtype=np.int32)
    found = session({"input_ids": ids, "attention_mask": [[1, 1, 1], [1, 0, 0]], "labels": ids})
    assert found["logits"].tolist() == [[3, 4, 5], [6, 0, 0]]


def test_a_shape_that_the_model_cannot_take_is_an_input_error(onnx_file: Path) -> None:
    session = infer.open_model(onnx_file)
    with pytest.raises(InputError, match=r"model\.onnx: cannot run on input_ids \[1, 2\], attention_mask \[1, 3\]"):
        session({"input_ids": np.ones((1, 2)), "attention_mask": np.ones((1, 3))})


@pytest.mark.parametrize(("given", "signature"), [(2, 4), (4, 4), (5, 8), (8, 8)])
def test_tflite_runs_each_row_at_the_smallest_length_that_fits(tflite: Path, given: int, signature: int) -> None:
    ids = np.arange(1, 2 * given + 1).reshape(2, given)  # int64
    mask = np.ones_like(ids)
    mask[1, 1:] = 0
    found = infer.open_model(tflite)({"input_ids": ids, "attention_mask": mask})
    seen = ids * mask
    assert found["logits"].tolist() == np.stack([seen, -seen], -1).tolist()
    assert found["sentence_embedding"].tolist() == [[signature], [signature]]


def test_tflite_describes_its_greatest_length(tflite: Path) -> None:
    session = infer.open_model(tflite)
    assert {(t.name, t.dtype, t.shape) for t in session.inputs} == {
        ("input_ids", "int32", (1, 8)),
        ("attention_mask", "int32", (1, 8)),
    }
    assert {(t.name, t.dtype, t.shape) for t in session.outputs} == {
        ("logits", "float32", (1, 8, 2)),
        ("sentence_embedding", "float32", (1, 1)),
    }


def test_too_long_an_input_names_the_greatest_length(tflite: Path) -> None:
    ids = np.ones((1, 9), dtype=np.int64)
    with pytest.raises(InputError, match=r"9 tokens given, the model takes at most 8"):
        infer.open_model(tflite)({"input_ids": ids, "attention_mask": ids})


def test_a_missing_input_is_named(tflite: Path, onnx_file: Path) -> None:
    for path in (tflite, onnx_file):
        with pytest.raises(InputError, match=rf"{path.name}: needs the input attention_mask; given: input_ids"):
            infer.open_model(path)({"input_ids": np.ones((1, 2))})


@pytest.mark.parametrize("content", [b"", b"not a model", None])
@pytest.mark.parametrize("suffix", ["onnx", "tflite"])
def test_a_corrupt_file_is_an_input_error(
    tmp_path: Path, onnx_file: Path, tflite: Path, suffix: str, content: bytes | None
) -> None:
    whole = (onnx_file if suffix == "onnx" else tflite).read_bytes()
    path = tmp_path / f"broken.{suffix}"
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(InputError, match=rf"broken\.{suffix}: .* cannot load it"):
        infer.open_model(path)


def test_an_absent_or_unknown_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such model file"):
        infer.open_model(tmp_path / "model.onnx")
    with pytest.raises(InputError, match=r"must end in \.onnx or \.tflite"):
        infer.open_model(tmp_path / "model.pt")


def test_a_missing_extra_names_its_pip_line(onnx_file: Path, tflite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("onnxruntime", "ai_edge_litert.interpreter", "tflite_runtime.interpreter"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r'needs onnxruntime: pip install "edgekit\[run\]"'):
        infer.open_model(onnx_file)
    with pytest.raises(InputError, match=r'needs ai_edge_litert: pip install "edgekit\[run\]"'):
        infer.open_model(tflite)


def test_opening_and_running_print_nothing(tflite: Path, capfd: pytest.CaptureFixture[str]) -> None:
    session = infer.open_model(tflite)
    session(infer.example(session, 3))
    assert capfd.readouterr() == ("", "")


def _features(*lengths: int) -> list[Feature]:
    return [
        Feature({"input_ids": np.full(n, n), "attention_mask": np.ones(n, dtype=np.int64)}, i)
        for i, n in enumerate(lengths)
    ]


def test_a_predictor_batches_like_lengths_and_takes_the_padding_off() -> None:
    seen: list[list[list[int]]] = []

    def run(batch: Arrays) -> Arrays:
        seen.append(batch["input_ids"].tolist())
        ids = batch["input_ids"].astype(float)
        return {"logits": np.stack([ids, -ids], -1), "extra": ids}

    found = infer.predictor(run, "token-classification", pad_id=9, batch_size=2)(_features(3, 1, 2))
    assert seen == [[[1, 9], [2, 2]], [[3, 3, 3]]]
    assert [output["logits"][:, 0].tolist() for output in found] == [[3, 3, 3], [1], [2, 2]]
    assert all(set(output) == {"logits"} for output in found)


def test_a_predictor_keeps_outputs_that_have_no_length() -> None:
    def run(batch: Arrays) -> Arrays:
        return {"logits": batch["attention_mask"].sum(1, keepdims=True) * np.ones((1, 4))}

    found = infer.predictor(run, "text-classification")(_features(2, 3))
    assert [output["logits"].tolist() for output in found] == [[2] * 4, [3] * 4]


def test_a_predictor_cuts_question_answering_spans(tflite: Path) -> None:
    def run(batch: Arrays) -> Arrays:
        return {"start_logits": batch["input_ids"], "end_logits": -batch["input_ids"]}

    found = infer.predictor(run, "question-answering")(_features(2, 4))
    assert [(o["start_logits"].tolist(), o["end_logits"].tolist()) for o in found] == [
        ([2, 2], [-2, -2]),
        ([4] * 4, [-4] * 4),
    ]


def test_latency_interleaves_its_sessions() -> None:
    calls: list[str] = []

    def called(name: str) -> Callable[[Arrays], dict[str, np.ndarray]]:
        def run(feeds: Arrays) -> dict[str, np.ndarray]:
            calls.append(name)
            return {}

        return run

    sessions = [Session(Path(name), (), (), called(name)) for name in "ab"]
    assert all(seconds > 0 for seconds in infer.latency(sessions, {}, budget_s=0))
    assert "".join(calls) == "ab" + "abba" * 3
