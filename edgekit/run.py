"""`edgekit run`: what a user sees for a text, from a bundle alone and without torch."""

from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

from edgekit import bundle, infer, plugins
from edgekit.records import Format


def answer(path: Path, given: Sequence[str], format: Format | None = None) -> Any:
    """The task's answer for `given` (one text, a pair, or the path of an image, as the task takes them).

    `path` is a bundle's folder or zip, verified before anything in it is used; `format` defaults to the target's
    first. The answer is a JSON value with the key `text`. Raises `InputError` for a bundle that `bundle.verify`
    refuses, a format that it lacks, and a count of texts that the task does not take.
    """
    return next(answers(path, [given], format))


def answers(path: Path, asked: Iterable[Sequence[str]], format: Format | None = None) -> Generator[Any]:
    """`answer` for each of many, with the bundle verified and opened once."""
    with bundle.opened(path) as (folder, manifest):
        model = manifest.model(format)
        task, params = plugins.use("tasks", manifest.task, f"{path}: manifest.json")
        encoder = task.encoder(params, folder / manifest.encoder, manifest.max_length)
        session = infer.open_model(folder / model.path, manifest.target.runtime.threads)
        predict = infer.predictor(session, manifest.kind, manifest.pad_id)
        for given in asked:
            yield task.answer(params, given, manifest.labels, encoder, predict)
