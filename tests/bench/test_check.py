"""Outputs of a device against the host's, on arrays made by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bench import check
from edgekit.bundle import Manifest, ModelFile
from edgekit.errors import DeviceError, InputError
from edgekit.records import Target, Tensor, Use

IDS = Tensor(name="input_ids", dtype="int32", shape=(1, 4))
MASK = Tensor(name="attention_mask", dtype="int32", shape=(1, 4))
EXAMPLES = [
    {"input_ids": np.array([5, 6, 7]), "attention_mask": np.array([1, 1, 1])},
    {"input_ids": np.array([1, 2, 3, 4, 5]), "attention_mask": np.ones(5, dtype=np.int64)},
]


def manifest(format: str = "tflite", quantized: bool = True) -> Manifest:
    model = ModelFile(
        format=format, path=f"{format}/model.{format}", quantized=quantized, inputs=(IDS, MASK), outputs=(),
        lengths=(4, 8), score=None, parity=(), latency_s=None, float_latency_s=None,
    )  # fmt: skip
    target = Target(name="t", description="d", abi="host", formats=("tflite", "onnx"), lengths=(4, 8))
    return Manifest(
        version=2, edgekit="0", name="n", task=Use(name="punctuation"), kind="token-classification", labels=("a", "b"),
        target=target, max_length=8, pad_id=9, encoder="onnx", models=(model,), host="h", recipe={}, stages=(),
        files=(), digest="",
    )  # fmt: skip


def subject(format: str = "tflite", quantized: bool = True, lengths: tuple[int, ...] = (4,)) -> check.Subject:
    found = manifest(format, quantized)
    return check.Subject(Path("b"), Path("b"), found, found.models[0], lengths, EXAMPLES)


def test_tflite_is_filled_up_and_cut() -> None:
    fed = [subject().feed(example, 4) for example in EXAMPLES]
    assert [{k: v.tolist() for k, v in f.items()} for f in fed] == [
        {"input_ids": [[5, 6, 7, 9]], "attention_mask": [[1, 1, 1, 0]]},
        {"input_ids": [[1, 2, 3, 4]], "attention_mask": [[1, 1, 1, 1]]},
    ]
    assert fed[0]["input_ids"].dtype == np.int32
    assert subject().signature(4) == "len_4"


def test_onnx_takes_an_example_as_long_as_it_is() -> None:
    asked = subject("onnx")
    assert asked.feed(EXAMPLES[0], 4)["input_ids"].tolist() == [[5, 6, 7]]
    assert asked.signature(4) is None


def test_what_is_timed_has_no_padding() -> None:
    assert {k: v.tolist() for k, v in subject().timed(8).items()} == {
        "input_ids": [[1, 2, 3, 4, 5, 1, 2, 3]],
        "attention_mask": [[1] * 8],
    }


def outputs(change: Any = None) -> dict[int | None, list[dict[str, np.ndarray]]]:
    rng = np.random.default_rng(0)
    found = [{"logits": rng.normal(size=(1, 4, 2)).astype(np.float32)} for _ in EXAMPLES]
    if change:
        change(found)
    return {4: found}


def test_equal_outputs_pass() -> None:
    (found,) = check.compare(subject(), outputs(), outputs())
    assert (found.output, found.examples, found.flips, found.decisions) == ("logits", 2, 0, 3 + 4)
    assert (found.cosine_min, found.max_abs_diff, found.passed) == (pytest.approx(1), 0, True)


def test_padding_does_not_count() -> None:
    def change(found: list[dict[str, np.ndarray]]) -> None:
        found[0]["logits"][0, 3] += 100

    assert check.compare(subject(), outputs(), outputs(change))[0].max_abs_diff == 0


def test_the_figures_of_a_wrong_device() -> None:
    def change(found: list[dict[str, np.ndarray]]) -> None:
        found[1]["logits"] = -found[1]["logits"]

    (found,) = check.compare(subject(), outputs(), outputs(change))
    assert found.cosine_min == pytest.approx(-1)
    assert (found.flips, found.passed) == (4, False)
    assert found.max_abs_diff == pytest.approx(2 * np.abs(outputs()[4][1]["logits"]).max())


@pytest.mark.parametrize(("quantized", "passed"), [(True, True), (False, False)])
def test_int8_may_differ_more_than_float(quantized: bool, passed: bool) -> None:
    def change(found: list[dict[str, np.ndarray]]) -> None:
        for one in found:
            one["logits"] += 0.05 * np.sign(one["logits"])

    assert check.compare(subject(quantized=quantized), outputs(), outputs(change))[0].passed is passed


def test_a_flip_in_a_float_model_fails_whatever_the_cosine() -> None:
    def near(found: list[dict[str, np.ndarray]]) -> None:
        found[0]["logits"][0, 0] = [1.0, 1.00001]

    def flipped(found: list[dict[str, np.ndarray]]) -> None:
        found[0]["logits"][0, 0] = [1.00001, 1.0]

    (found,) = check.compare(subject(quantized=False), outputs(near), outputs(flipped))
    assert (found.flips, found.passed) == (1, False)
    assert found.cosine_min > 0.9999


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_a_number_fails(bad: float) -> None:
    def change(found: list[dict[str, np.ndarray]]) -> None:
        found[0]["logits"][0, 0, 0] = bad

    (found,) = check.compare(subject(), outputs(), outputs(change))
    assert (found.passed, found.cosine_min) == (False, 0)


def test_another_shape_or_name_is_refused() -> None:
    with pytest.raises(DeviceError, match="gave no output logits"):
        check.compare(subject(), outputs(), {4: [{"x": np.zeros(1)}, {"x": np.zeros(1)}]})
    wrong = [{"logits": np.zeros((1, 4, 3), np.float32)}] * 2
    for shapeless in (wrong, [{"logits": np.array(1.0)}] * 2, [{"logits": np.zeros((0, 4, 2))}] * 2):
        with pytest.raises(DeviceError, match="shape"):
            check.compare(subject(), outputs(), {4: shapeless})


def test_lengths_that_a_model_lacks(tmp_path: Path) -> None:
    for format, length, words in (("tflite", 5, "one TFLite signature each for 4, 8"), ("onnx", 9, "at most 8")):
        with pytest.raises(InputError, match=words):
            check.subject(Path("b"), tmp_path, manifest(format), None, (length,))
