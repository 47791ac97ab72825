"""Rows from the Hugging Face hub by the `datasets` library, or from a folder laid out like one there.

Data only: a data set that needs its own Python code is refused, as `datasets` does.
"""

import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekit.corpora import Split, files
from edgekit.errors import InputError
from edgekit.records import Record
from edgekit.tasks import Row


class Params(Record):
    """A data set (hub name, or a folder relative to the recipe's), and its splits."""

    dataset: str
    config: str | None = None
    train: str = "train"
    dev: str = "validation"
    revision: str | None = None
    """A branch, tag or commit; with a commit (40 hexadecimal digits) an unchanged build need not ask the hub."""


def rows(params: Params, split: Split, base: Path) -> Iterator[Row]:
    """The rows of a split. Raises `InputError` where the hub, the data set or the split cannot be reached."""
    import datasets

    name = params.train if split == "train" else params.dev
    loaded = _call(datasets.load_dataset, params, base, split=name)
    yield from files.dataset_rows(loaded, f"{params.dataset}: split {name}", base)


def fingerprint(params: Params, base: Path) -> str:
    """The sha256 of a folder's files, or of what the revision stands for on the hub."""
    import datasets

    if (base / params.dataset).is_dir():
        resolved = files.hash_files([base / params.dataset])
    elif re.fullmatch(r"[0-9a-f]{40}", params.revision or ""):
        resolved = params.revision
    else:
        builder = _call(datasets.load_dataset_builder, params, base)
        resolved = f"{builder.hash} {builder.config_id}"
    return hashlib.sha256(f"{params.model_dump_json()} {resolved}".encode()).hexdigest()


def _call(load: Any, params: Params, base: Path, **more: Any) -> Any:
    import datasets
    from datasets.exceptions import DatasetsError

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    local = base / params.dataset
    source = str(local) if local.is_dir() else params.dataset
    try:
        return load(source, name=params.config, revision=params.revision, **more)
    except (DatasetsError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f'data "hub": cannot load {more.get("split", "")} of {source}: {reason}; check the name, its config and '
            'splits, and the network, or save it with save_to_disk and use data "files"'
        ) from None
