"""Bundle: models, tokenizer, labels, samples, a model card and the manifest, in one folder that an app can ship."""

import json
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekit import __version__, infer, progress
from edgekit.bundle import FOLDER, VERSION, Manifest, ModelFile, write, write_examples
from edgekit.errors import InputError, NotGoodEnough
from edgekit.pipeline import Job, Made, card
from edgekit.pipeline.parts import parts
from edgekit.records import Budget, Comparison, Facts, Format
from edgekit.store import files_in

_SAMPLES = Path(__file__).parent.parent / "samples"
_PROCESSOR = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "preprocessor_config.json"
)  # fmt: skip


def run(step: None, job: Job) -> Facts:
    """Fill `job.out`/bundle from the final `model` and, of each format, the `quantize:` parent or else `export:`.

    Budgets that need no device are checked first: `size_bytes` limits each model file, `score` each model's score.
    Raises `NotGoodEnough` with the numbers where a required one is not kept.
    """
    shipped: dict[Format, Made] = {format: _best(job, format) for format in job.target.formats}
    notes = _check_budgets(job, shipped)
    folder = job.out / FOLDER
    encoder = "onnx" if "onnx" in shipped else job.target.formats[0]
    for format, made in shipped.items():
        (folder / format).mkdir(parents=True)
        for path in made.folder.glob(f"model.{format}*"):  # with model.onnx.data, where weights exceed 2 GB
            shutil.copyfile(path, folder / format / path.name)
    config = _copy_processor(job, folder / encoder)
    (folder / "labels.json").write_text(json.dumps(job.data.labels, ensure_ascii=False) + "\n", encoding="utf-8")
    kotlin = _copy_samples(folder, folder / encoder)
    count = 4 if job.data.kind == "image-classification" else 8  # an image has 0.6 MB
    features = job.data.features("dev", job.parents["model"].folder, limit=count)[:count]
    write_examples(folder, [feature.inputs for feature in features])
    manifest = Manifest(
        version=VERSION, edgekit=__version__, name=job.recipe.name, task=job.recipe.task, kind=job.data.kind,
        labels=job.data.labels, target=job.target, max_length=min(job.recipe.max_length, job.target.lengths[-1]),
        pad_id=config.get("pad_token_id") or 0, encoder=encoder,
        models=tuple(_model_file(job, format, made) for format, made in shipped.items()), host=host(),
        recipe=job.recipe.model_dump(mode="json"), stages=job.history, files=(), digest="",
    )  # fmt: skip
    (folder / "README.md").write_text(card.text(manifest, job, kotlin), encoding="utf-8")
    manifest = write(folder, manifest)
    sizes: dict[Format, int] = {format: (folder / _path(format)).stat().st_size for format in shipped}
    scores = [made.artifact.facts.score for made in shipped.values() if made.artifact.facts.score]
    return Facts(
        parameters=job.parents["model"].artifact.facts.parameters,
        bytes=sum(sizes.values()),
        score=min(scores, key=lambda score: score.value) if scores else None,
        changed=f"{', '.join(f'{format} {size / 1e6:.1f} MB' for format, size in sizes.items())}; "
        f"manifest {manifest.digest[:16]}",
        against_teacher=_against_teacher(job, folder, sizes),
        notes=notes,
    )


def _against_teacher(job: Job, folder: Path, sizes: dict[Format, int]) -> tuple[Comparison, ...]:
    """Each model beside the teacher's float32 ONNX, where the recipe made the teacher smaller."""
    if "baseline" not in job.parents:
        return ()
    baseline = job.parents["baseline"].folder / "model.onnx"
    sessions = [infer.open_model(path) for path in (baseline, *(folder / _path(format) for format in sizes))]
    with progress.bar("compare with the teacher"):
        teacher_s, *seconds = infer.latency(sessions, infer.example(sessions[0], job.target.lengths[-1]), budget_s=5)
    return tuple(
        Comparison(
            format=format, times_smaller=baseline.stat().st_size / sizes[format], times_faster=teacher_s / taken_s
        )
        for format, taken_s in zip(sizes, seconds, strict=True)
    )


def samples_fingerprint() -> list[str]:
    """The sha256 of each sample that ships with edgekit, in order of path: part of what makes a bundle."""
    return [file.sha256 for file in files_in(_SAMPLES) if "__pycache__" not in file.path]


def _best(job: Job, format: Format) -> Made:
    """The quantized model where there is one."""
    found = job.parents.get(f"quantize:{format}") or job.parents.get(f"export:{format}")
    if found is None:
        raise InputError(f"bundle: the target wants {format} and the recipe exports none; add an export step")
    return found


def _path(format: Format) -> str:
    return f"{format}/model.{format}"


def _check_budgets(job: Job, shipped: dict[Format, Made]) -> tuple[str, ...]:
    """Notes on the budgets that were not kept but are not required, and on those that only a device can check."""
    notes: list[str] = []
    for budget in job.target.budgets:
        if budget.metric not in ("size_bytes", "score"):
            notes.append(f"budget {budget.metric} <= {budget.limit:g}: to be measured on the device")
            continue
        for said in _misses(budget, shipped):
            if budget.required:
                raise NotGoodEnough(f"bundle for {job.target.name}: {said}")
            notes.append(f"budget not required and not kept: {said}")
    return tuple(notes)


def _misses(budget: Budget, shipped: dict[Format, Made]) -> Iterator[str]:
    for format, made in shipped.items():
        if budget.metric == "size_bytes":
            size = (made.folder / f"model.{format}").stat().st_size
            if size > budget.limit:
                yield (
                    f"the {format} model has {size} bytes, the budget size_bytes is {budget.limit:.0f}; "
                    "prune more (vocabulary, neurons, layers), quantize, or raise the budget"
                )
        else:
            score = made.artifact.facts.score
            found = f"{score.metric} {score.value:.4f}" if score else "no score"
            if score is None or score.value < budget.limit:
                yield (
                    f"the {format} model ({made.artifact.name}) has {found}, the budget score is {budget.limit:g}; "
                    "train longer, take less away, or lower the budget"
                )


def _model_file(job: Job, format: Format, made: Made) -> ModelFile:
    facts = made.artifact.facts
    return ModelFile(
        format=format,
        path=_path(format),
        quantized=made.artifact.stage == "quantize",
        inputs=facts.inputs,
        outputs=facts.outputs,
        lengths=() if job.data.kind == "image-classification" else job.target.lengths,
        score=facts.score,
        parity=facts.parity,
        latency_s=facts.latency_s,
        float_latency_s=facts.float_latency_s,
        parts=parts(made.folder / f"model.{format}"),
    )


def _copy_processor(job: Job, folder: Path) -> dict[str, Any]:
    """Copy the model's configuration and its tokenizer or image preprocessor; gives the configuration."""
    model = job.parents["model"].folder
    for name in _PROCESSOR:
        if (model / name).is_file():
            shutil.copyfile(model / name, folder / name)
    path = folder / "tokenizer_config.json"
    if path.is_file():
        # Transformers 5 writes a class that version 4, which Optimum needs, does not know under that name.
        text = path.read_text(encoding="utf-8").replace('"TokenizersBackend"', '"PreTrainedTokenizerFast"')
        path.write_text(text, encoding="utf-8")
    path = folder / "preprocessor_config.json"
    if path.is_file():  # with every value written out, for the samples
        values = {
            **json.loads(path.read_text(encoding="utf-8")),
            **job.data.encoder(model).model_dump(exclude_none=True),
        }
        path.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def _copy_samples(folder: Path, encoder: Path) -> tuple[str, ...]:
    """Copy the samples that fit the model; gives the names of the Kotlin files."""
    if (encoder / "preprocessor_config.json").is_file():
        kotlin = ("Model.kt", "Image.kt")
    else:
        kotlin = ("Model.kt", "Text.kt", *(("WordPiece.kt",) if _is_wordpiece(encoder) else ()))
    for name in ("python/run.py", *(f"kotlin/{name}" for name in kotlin)):
        path = folder / "samples" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_SAMPLES / name, path)
    return kotlin


def _is_wordpiece(folder: Path) -> bool:
    """Whether the tokenizer is BERT's, the one that WordPiece.kt implements."""
    parts = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    found = tuple((parts.get(part) or {}).get("type") for part in ("model", "normalizer", "pre_tokenizer"))
    ends = (parts.get("post_processor") or {}).get("type")
    return found == ("WordPiece", "BertNormalizer", "BertPreTokenizer") and ends in (
        "TemplateProcessing",
        "BertProcessing",
    )


def host() -> str:
    """This machine in one line, without its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        cpu = platform.processor()
    return " ".join(part for part in (platform.system(), platform.machine(), cpu) if part)
