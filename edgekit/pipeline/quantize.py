"""Quantize: int8 after training; kept when it is int8 in truth, as good as allowed, and faster than float here.

    for the step's mode, then the other one:
        quantize all layers -> are they int8? -> score; fell too far? -> leave the costliest layers in float
        -> faster than float? -> that is the model
    else refuse, with each mode's reason

What a layer costs is measured: it alone is quantized, all others are float (the sensitivity analysis of Wu et al.
2020, "Integer quantization for deep learning inference", section 6.1). Then as few layers as bring the score back
within `max_drop` are left in float, the costliest first.
"""

import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import infer, plugins, progress
from edgekit.errors import InputError, NotGoodEnough
from edgekit.pipeline import Job
from edgekit.recipe import Quantize
from edgekit.records import Facts, LayerSensitivity, Score
from edgekit.tasks import Arrays, Feature

_SENSITIVITY_ROWS = 256


def run(step: Quantize, job: Job) -> Facts:
    """Write `model.onnx` or `model.tflite` to `job.out`. Raises `NotGoodEnough` where neither mode passes."""
    work = _Work(step, job)
    refused: list[str] = []
    for mode in (step.mode, "static" if step.mode == "dynamic" else "dynamic"):
        try:
            facts = _variant(work, mode)
        except NotGoodEnough as error:
            refused.append(f"{mode}: {error}")
        else:
            return facts.model_copy(update={"refused": tuple(refused)})
    raise NotGoodEnough(
        f"quantize {job.format}: no int8 model is good enough; {'; '.join(refused)}; raise max_drop, set "
        "must_be_faster = false, or leave the quantize step out"
    )


def check(quantizer: Any, source: Path, path: Path, keep_float: Sequence[str] = ()) -> None:
    """Raise `NotGoodEnough` unless all of `path` but `keep_float` is int8, by its tensors' types, and it is smaller.

    `quantizer` is a plugin, `source` the float file. A library may succeed and quantize nothing.
    """
    layers = quantizer.layers(path)
    whole = sum(layer.elements for layer in layers)
    int8 = sum(layer.elements for layer in layers if layer.dtype == "int8")
    left = [layer.name for layer in layers if layer.dtype != "int8" and layer.name not in keep_float]
    size, before = path.stat().st_size, source.stat().st_size
    if left or not int8 or size >= before:
        raise NotGoodEnough(
            f"{path.name} is not quantized: {int8:,} of {whole:,} weights are int8, {size:,} bytes of {before:,}; "
            f"still float: {_some(left)}"
        )


@dataclass
class _Work:
    """One format's float model, and the file that its int8 variants are tried in, one after the other."""

    step: Quantize
    job: Job

    @cached_property
    def quantizer(self) -> Any:
        return plugins.load("quantizers", str(self.job.format))

    @cached_property
    def source(self) -> Path:
        return self.job.parents["export"].folder / f"model.{self.job.format}"

    @cached_property
    def path(self) -> Path:
        return self.job.out / self.source.name

    @cached_property
    def ranges(self) -> Any:
        """What calibration on training rows saw; static models share it."""
        features = self.job.data.features("train", self.tokenizer, limit=self.step.calibration_rows)
        with progress.bar("calibrate", len(features)) as done:
            return self.quantizer.calibrate(self.source, _rows(features, done))

    @property
    def tokenizer(self) -> Path:
        return self.job.parents["model"].folder

    @cached_property
    def before(self) -> Score:
        """The float file's score."""
        return self.job.parents["export"].artifact.facts.score or self.score(self.source)[0]

    def quantize(self, mode: str, keep_float: Sequence[str] = ()) -> None:
        """Make the variant in `path`."""
        self.path.unlink(missing_ok=True)  # an opened TFLite file is mapped: never write into it
        self.quantizer.quantize(self.source, self.path, self.ranges if mode == "static" else None, keep_float)

    def score(self, path: Path, rows: int | None = None) -> tuple[Score, list[Arrays]]:
        """The score on the dev split, or on `rows` of it, and the outputs behind it."""
        predict = infer.predictor(_open(path, os.cpu_count() or 1), self.job.data.kind)
        outputs: list[Arrays] = []

        def noted(features: Sequence[Feature]) -> list[Arrays]:
            outputs.extend(predict(features))
            return outputs

        return self.job.data.score(noted, self.tokenizer, limit=rows), outputs


def _open(path: Path, threads: int = 1) -> infer.Session:
    """A model; one that its runtime refuses (scales can be too far apart for a kernel) is not good enough."""
    try:
        return infer.open_model(path, threads)
    except InputError as error:
        raise NotGoodEnough(str(error)) from None


def _rows(features: Sequence[Feature], done: Any) -> Iterator[Arrays]:
    """Each feature as a row of its own, so without padding."""
    for number, feature in enumerate(features, 1):
        yield {name: array[None] for name, array in feature.inputs.items()}
        done(number)


def _variant(work: _Work, mode: str) -> Facts:
    """The best int8 model that this mode gives. Raises `NotGoodEnough` with the reason why there is none."""
    step, job = work.step, work.job
    with progress.bar(f"quantize {job.format}, {mode}"):
        work.quantize(mode)
        check(work.quantizer, work.source, work.path)
        score, _ = work.score(work.path)
    sensitivity: tuple[LayerSensitivity, ...] = ()
    if step.max_drop is not None and work.before.value - score.value > step.max_drop:
        sensitivity, score = _mixed(work, mode, score, step.max_drop)
    kept = [layer.layer for layer in sensitivity if layer.kept]
    session = _open(work.path)
    length = job.target.lengths[-1]
    float_s, int8_s = infer.latency([_open(work.source), session], infer.example(session, length))
    if step.must_be_faster and int8_s >= float_s:
        raise NotGoodEnough(
            f"not faster on this host: {int8_s * 1e3:.2f} ms, float {float_s * 1e3:.2f} ms (batch 1, length {length}, "
            f"one thread{_in_float(kept)})"
        )
    facts = job.parents["export"].artifact.facts
    return Facts(
        parameters=facts.parameters,
        bytes=work.path.stat().st_size,
        score=score,
        changed=f"{job.format}: int8 {mode}, {float_s / int8_s:.1f} times as fast as float{_in_float(kept)}",
        format=job.format,
        inputs=session.inputs,
        outputs=session.outputs,
        latency_s=int8_s,
        float_latency_s=float_s,
        sensitivity=sensitivity,
    )


def _mixed(work: _Work, mode: str, score: Score, allowed: float) -> tuple[tuple[LayerSensitivity, ...], Score]:
    """Leave in float the fewest layers, the costliest first, that bring the score back within `allowed`."""
    costs = _costs(work, mode, allowed)
    names = list(costs)

    def good(count: int) -> bool:
        work.quantize(mode, names[:count])
        return work.before.value - work.score(work.path)[0].value <= allowed

    with progress.bar("find the layers to leave in float"):
        # all but one may be left in float; more float cannot score worse but for noise, so halving finds the fewest
        count = 1 + bisect_left(range(1, len(names)), True, key=good)
        if count >= len(names):
            worst = ", ".join(f"{name} {costs[name]:.4f}" for name in names[:3])
            raise NotGoodEnough(
                f"{score.metric} fell from {work.before.value:.4f} to {score.value:.4f}, by more than max_drop = "
                f"{allowed}, and leaving layers in float does not help; alone, these cost most: {worst}"
            )
        kept = names[:count]
        work.quantize(mode, kept)
        check(work.quantizer, work.source, work.path, kept)
        found, _ = work.score(work.path)
    return tuple(LayerSensitivity(layer=n, drop=costs[n], kept=n in kept) for n in names), found


def _costs(work: _Work, mode: str, allowed: float) -> dict[str, float]:
    """What quantizing each layer alone costs in score, the costliest first.

    First come those that alone cost more than `allowed`. Below that a score on few rows is noise, so layers stand in
    the order of how far they move the outputs.
    """
    before, reference = work.score(work.source, _SENSITIVITY_ROWS)
    layers = [layer.name for layer in work.quantizer.layers(work.source)]
    costs: dict[str, float] = {}
    moved: dict[str, float] = {}
    with progress.bar("sensitivity of each layer", len(layers)) as done:
        for number, name in enumerate(layers, 1):
            work.quantize(mode, [other for other in layers if other != name])
            score, outputs = work.score(work.path, _SENSITIVITY_ROWS)
            costs[name], moved[name] = before.value - score.value, _distance(outputs, reference)
            done(number)
    order = sorted(layers, key=lambda name: (costs[name] > allowed, moved[name]), reverse=True)
    return {name: costs[name] for name in order}


def _distance(outputs: Sequence[Arrays], reference: Sequence[Arrays]) -> float:
    """The mean squared difference of two models' outputs on the same features."""
    pairs = [(a[name], b[name]) for a, b in zip(outputs, reference, strict=True) for name in b]
    return float(np.mean([np.mean(np.square(a - b)) for a, b in pairs]))


def _in_float(kept: Sequence[str]) -> str:
    return f"; in float: {_some(kept)}" if kept else ""


def _some(names: Sequence[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"
