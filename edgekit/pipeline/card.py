"""The model card of a bundle: what it is, what it was made from, how good it is, how to call it, its limits."""

import re
from collections.abc import Sequence
from pathlib import Path

from edgekit.bundle import Manifest, ModelFile
from edgekit.pipeline import Job, weights
from edgekit.recipe import Pretrain, Teach
from edgekit.records import Artifact, Budget

_KOTLIN = {
    "Image.kt": "It holds the preprocessing; the image is scaled with Android's Bitmap.",
    "WordPiece.kt": "It holds the tokenizer too.",
    "Text.kt": "It holds the model call and the decoding, but no tokenizer: this model's is not BERT's WordPiece. "
    "The app needs a library that reads tokenizer.json.",
}
_GIVEN = {"question-answering": '"a question" "its context"', "image-classification": "photo.jpg"}


def text(manifest: Manifest, job: Job, kotlin: Sequence[str]) -> str:
    """The card in Markdown; `kotlin` names the Kotlin files that the bundle holds."""
    given = _GIVEN.get(manifest.kind, '"a text"')
    labels = ", ".join(manifest.labels[:20]) + (", …" if len(manifest.labels) > 20 else "")
    sample = next(said for name, said in _KOTLIN.items() if name in kotlin)
    longest = (
        f"- Inputs are cut at {manifest.max_length} tokens; longer ones are read in windows where the task has them."
    )
    return f"""# {manifest.name}

A {manifest.kind} model for {manifest.target.description} ({manifest.target.abi}), built by edgekit {manifest.edgekit}.

- Task: {manifest.task.name}{f", labels {labels}" if labels else ""}
- {_data(job)}
- Teacher: {_teacher(job)}
- Runs on: {", ".join(f"{model.path} ({'int8' if model.quantized else 'float32'})" for model in manifest.models)}

## Score
{_table(manifest.stages)}

{_models(manifest.models)}

Latencies are those of the machine that built this ({manifest.host}; batch 1, one thread), not of the target.

## How to call it
    edgekit run . {given}
    python samples/python/run.py {given}      # needs no edgekit

`samples/kotlin/` is for an Android app. {sample} `onnx/` loads as is in Optimum's ORTModel classes.

## Limits
{longest if manifest.kind != "image-classification" else "- Images are scaled to the model's size."}
- Scores are of the recipe's dev rows, on the build machine; text of another kind may score lower.
{_budgets(manifest.target.budgets)}{_runtimes(manifest.models)}
- `edgekit verify .` shows whether a file was changed since the build.
"""


def _options(params: dict[str, object]) -> str:
    return f" ({', '.join(f'{key} = {value}' for key, value in params.items())})" if params else ""


def _data(job: Job) -> str:
    """What it was trained on, for the task and before."""
    data, read = job.recipe.data, job.recipe.text
    pretrained = read and any(isinstance(step, Pretrain) for step in job.recipe.step)
    text = f"; before that plain text: {read.data.name}{_options(read.data.params)}" if read and pretrained else ""
    return f"Data: {data.name}{_options(data.params)}{text}. Languages: those of the data; none other was tried."


def _teacher(job: Job) -> str:
    step = job.recipe.step[0]
    assert isinstance(step, Teach)  # the recipe's own validator saw to it
    licence = _licence(weights.locate(step, job.data.base))
    return f"{step.model}; licence: {licence or 'not stated beside its weights; ask its source before you ship'}"


def _licence(folder: Path) -> str | None:
    """What the teacher's own card says in its front matter."""
    path = folder / "README.md"
    head = path.read_text(encoding="utf-8", errors="replace").split("\n---", 1)[0] if path.is_file() else ""
    found = re.search(r"^licen[cs]e:\s*['\"]?([\w.+-]+)", head, re.MULTILINE) if head.startswith("---") else None
    return found.group(1) if found else None


def _table(stages: Sequence[Artifact]) -> str:
    rows = ["| stage | parameters | MB | score | what changed |", "|---|---|---|---|---|"]
    for stage in stages:
        facts = stage.facts
        score = f"{facts.score.metric} {facts.score.value:.4f}" if facts.score else "not measured"
        parameters = f"{facts.parameters:,}" if facts.parameters is not None else ""
        rows.append(f"| {stage.name} | {parameters} | {facts.bytes / 1e6:.1f} | {score} | {facts.changed} |")
    return "\n".join(rows)


def _models(models: Sequence[ModelFile]) -> str:
    rows = ["| model | score | its parts | ms | float32 ms |", "|---|---|---|---|---|"]
    for model in models:
        score = f"{model.score.metric} {model.score.value:.4f}" if model.score else "not measured"
        parts = [
            f"{part.name} {part.value:.3f}" + (f" of {part.support}" if part.support is not None else "")
            for part in (model.score.parts if model.score else ())
        ]
        times = [f"{s * 1000:.2f}" if s is not None else "" for s in (model.latency_s, model.float_latency_s)]
        rows.append(f"| {model.format} | {score} | {', '.join(parts)} | {times[0]} | {times[1]} |")
    return "\n".join(rows)


def _budgets(budgets: Sequence[Budget]) -> str:
    said: list[str] = []
    for budget in budgets:
        here = "kept" if budget.required else "wished for, not required"
        state = here if budget.metric in ("size_bytes", "score") else "not measured yet: only the device can tell"
        sign = ">=" if budget.metric == "score" else "<="
        said.append(f"- Budget: {budget.metric} {sign} {budget.limit:.10g}, {state}")
    return "\n".join(said) or "- No budget was set for this target."


def _runtimes(models: Sequence[ModelFile]) -> str:
    """tflite-runtime 2.14, the last of its name, takes one scale a tensor and says nothing of the others it ignores."""
    if not any(model.format == "tflite" and model.quantized for model in models):
        return ""
    return "\n- The int8 TFLite needs LiteRT (ai-edge-litert): tflite-runtime 2.14 loads it and gives wrong outputs."
