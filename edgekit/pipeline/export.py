"""Export: the model as a file of one format, held against torch before anything is made of it.

An exporter can succeed and be wrong: an input merged with another, a length frozen in the graph, a mask lost. So the
file is run beside the torch model on rows of several lengths, padded and not, made up and real, and on inputs changed
one at a time. It is refused at the first output that differs, or input that does nothing.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import CONFIG_MAPPING

from edgekit import infer, plugins, progress
from edgekit.errors import NotGoodEnough
from edgekit.infer import Session
from edgekit.pipeline import Job, models
from edgekit.pipeline.families import FAMILIES
from edgekit.pipeline.models import Exportable
from edgekit.recipe import Export
from edgekit.records import Facts, Parity
from edgekit.tasks import OUTPUTS, Arrays, Feature, pad

_REAL_ROWS = 8
_OVERFLOW = "weights that are not finite, or values beyond float32"


def refusal(config: Mapping[str, Any], lengths: Sequence[int], max_length: int) -> str | None:
    """Why a model with this config.json cannot be exported for these lengths, and what would work; `None` if it can."""
    config = config.get("backbone") or config  # of a ladder
    name = str(config.get("model_type"))
    if name == "edgekit-sequence":
        return None
    if name not in FAMILIES:
        return f'the family "{name}" cannot be exported; these can, to every format: {", ".join(FAMILIES)}'
    if name == "vit":
        return None
    if max_length > lengths[-1]:
        return f"max_length = {max_length} is more than the target's greatest length, {lengths[-1]}; lower max_length"
    full: Any = CONFIG_MAPPING[name].from_dict(dict(config))
    # these number positions from behind the padding id
    offset = full.pad_token_id + 1 if name in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0
    if lengths[-1] > (limit := full.max_position_embeddings - offset):
        return f"the target's greatest length is {lengths[-1]}, the model's {limit}; lower the target's lengths"
    return None


def run(step: Export, job: Job) -> Facts:
    """Write `model.onnx` or `model.tflite` to `job.out`. Raises `NotGoodEnough` where it is not the torch model."""
    assert job.format is not None  # the plan gives export steps one
    source, kind = job.parents["model"].folder, job.data.kind
    model = Exportable(models.load(source, kind, job.data.labels), kind).eval()
    exporter = plugins.load("exporters", job.format)
    path = job.out / f"model{exporter.SUFFIX}"
    lengths = job.target.lengths
    example = pad(made_up(model, 2, lengths[-1]), models.pad_id(model.model))
    with progress.bar(f"export {job.format}"), progress.quiet():
        exporter.export(model, {name: torch.from_numpy(array) for name, array in example.items()}, lengths, path)
    session = infer.open_model(path)
    check_inputs(session, model, example)
    real = job.data.features("dev", source, limit=_REAL_ROWS)[:_REAL_ROWS]  # a long text gives several
    parity = check_outputs(session, model, lengths, real, step.tolerance)
    every_core = infer.open_model(path, os.cpu_count() or 1)
    score = job.data.score(infer.predictor(every_core, kind, models.pad_id(model.model)), source)
    return Facts(
        parameters=models.parameters(model),
        bytes=sum(file.stat().st_size for file in job.out.iterdir()),
        score=score,
        changed=f"{job.format}: differs from torch by at most {max(p.max_abs_diff for p in parity):.1g}",
        format=job.format,
        inputs=session.inputs,
        outputs=session.outputs,
        parity=parity,
        latency_s=infer.latency([session], infer.example(session, lengths[-1]))[0],
    )


def made_up(model: Exportable, rows: int, length: int) -> list[Feature]:
    """Random rows of falling length, from `length` down; padded to a batch, all but the first have padding."""
    config, random = model.model.config, np.random.default_rng(length)
    if "pixel_values" in model.input_names:
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = (rows, config.num_channels, height, width)
        images = random.standard_normal(shape, dtype=np.float32)
        return [Feature({"pixel_values": image}, i) for i, image in enumerate(images)]
    return [
        Feature({name: _tokens(name, config, size, random) for name in model.input_names}, i)
        for i, size in enumerate(length * (rows - i) // rows for i in range(rows))
    ]


def _tokens(name: str, config: Any, length: int, random: np.random.Generator) -> np.ndarray:
    if name == "attention_mask":
        return np.ones(length, dtype=np.int64)
    if name == "token_type_ids":
        return random.integers(config.type_vocab_size, size=length)
    ids = random.integers(config.vocab_size, size=length)
    ids[ids == config.pad_token_id] += 1 if config.pad_token_id == 0 else -1
    return ids


def check_inputs(session: Session, model: Exportable, batch: Arrays) -> None:
    """Raise `NotGoodEnough` unless the file takes what the model takes, and each input moves some output.

    `batch` is padded. A model whose own outputs do not move with `token_type_ids` is one trained without segments.
    """
    names = {tensor.name for tensor in session.inputs}
    if names != set(model.input_names):
        raise NotGoodEnough(
            f"{session.path.name}: takes {sorted(names)}, the torch model {sorted(model.input_names)}; "
            "the exporter dropped or renamed an input"
        )
    run = models.runner(model.model, model.kind)
    for name in model.input_names:
        changed = {**batch, name: _changed(name, batch[name], model.model.config)}
        in_torch = _moves(run, batch, changed)
        if not _moves(session, batch, changed) and (in_torch or name != "token_type_ids"):
            cause = "the exporter merged or dropped it" if in_torch else "the torch model itself ignores it"
            raise NotGoodEnough(f"{session.path.name}: the input {name} has no effect on any output; {cause}")


def _changed(name: str, array: np.ndarray, config: Any) -> np.ndarray:
    """The same input with other values: nothing masked, other segments, other tokens, a negative image."""
    if name == "attention_mask":
        return np.ones_like(array)
    if name == "pixel_values":
        return -array
    return (array + 1) % (config.type_vocab_size if name == "token_type_ids" else config.vocab_size)


def _moves(run: Callable[[Arrays], Arrays], before: Arrays, after: Arrays) -> bool:
    was, now = run(before), run(after)
    return any(not np.array_equal(was[name], now[name]) for name in was)


def check_outputs(
    session: Session, model: Exportable, lengths: Sequence[int], real: Sequence[Feature], tolerance: float
) -> tuple[Parity, ...]:
    """The file beside torch float32 on unpadded positions, for made-up rows and one batch of `real` ones.

    Raises `NotGoodEnough` with the number, the tensor and the likely cause where an output is not a number, or
    differs by more than `tolerance`.
    """
    shortest, longest = max(lengths[0] // 2, 2), lengths[-1]
    batches = [made_up(model, 1, longest), made_up(model, 3, longest), made_up(model, 2, shortest), real]
    found = [parity for batch in batches for parity in _compare(session, model, batch, tolerance)]
    worst = max(found, key=lambda parity: parity.max_abs_diff)
    if worst.max_abs_diff > tolerance:
        raise NotGoodEnough(
            f"{session.path.name}: {worst.output} differs from torch by {worst.max_abs_diff:.3g} (tolerance "
            f"{tolerance:g}) on batch {worst.batch} x length {worst.length}; {_cause(found, longest)}"
        )
    return tuple(found)


def _compare(session: Session, model: Exportable, batch: Sequence[Feature], tolerance: float) -> Iterator[Parity]:
    kind, rows = model.kind, len(batch)
    length = max(len(feature.inputs.get("input_ids", ())) for feature in batch)  # 0 for images
    wanted = models.predictor(model.model, kind, rows)(batch)
    given = infer.predictor(session, kind, models.pad_id(model.model), rows)(batch)
    for name in OUTPUTS[kind]:
        for who, outputs in (("the torch model", wanted), (session.path.name, given)):
            if not all(np.isfinite(output[name]).all() for output in outputs):
                raise NotGoodEnough(f"{who}: {name} is not finite on batch {rows} x length {length}; {_OVERFLOW}")
        diff = max(float(np.abs(w[name] - g[name]).max()) for w, g in zip(wanted, given, strict=True))
        yield Parity(output=name, batch=rows, length=length, max_abs_diff=diff, tolerance=tolerance)


def _cause(found: Sequence[Parity], traced: int) -> str:
    """What is likely wrong, from which shapes are right; the file was traced at the length `traced`."""
    bad = [parity for parity in found if parity.max_abs_diff > parity.tolerance]
    if len(bad) == len(found):
        return "so does every shape: an operator or the weights are not torch's"
    if all(parity.length != traced for parity in bad):
        return f"length {traced} agrees: a length is frozen in the graph"
    if all(parity.batch > 1 for parity in bad):
        return "one row without padding agrees: the attention mask is lost or the batch size frozen"
    return "other shapes agree: an operator loses precision, or tolerance is too tight for this model's outputs"
