"""Plugins: one file in a plural-noun folder, named in a recipe by its file name. The only dynamic import.

>>> names("losses")                                   # doctest: +SKIP
('attention_mse', 'cross_entropy', 'hidden_mse', 'kl')
>>> loss, params = use("losses", Use(name="kl", temperature=2), "recipe.toml: step 1")    # doctest: +SKIP

A dotted name (`my_pkg.my_loss`) is a user's own module with the same contents.
"""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from edgekit.errors import InputError, nearest
from edgekit.records import Use, parse

_PACKAGES = {
    "tasks": "edgekit.tasks",
    "corpora": "edgekit.corpora",
    "students": "edgekit.pipeline.students",
    "methods": "edgekit.pipeline.methods",
    "losses": "edgekit.pipeline.losses",
    "callbacks": "edgekit.pipeline.callbacks",
    "criteria": "edgekit.pipeline.criteria",
    "exporters": "edgekit.pipeline.exporters",
    "quantizers": "edgekit.pipeline.quantizers",
    "transports": "edgekit.bench.transports",
    "meters": "edgekit.bench.meters",
}
KINDS = tuple(_PACKAGES)


def names(kind: str) -> tuple[str, ...]:
    """The plugins of one kind that ship with edgekit, in order."""
    folder = Path(__file__).parent.joinpath(*_PACKAGES[kind].split(".")[1:])
    return tuple(sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_")))


def module_name(kind: str, name: str, where: str | Path = "recipe") -> str:
    """The importable name behind a plugin's name; checked to exist, not imported."""
    if "." not in name:
        if name not in names(kind):
            raise InputError(f'{where}: no {kind} plugin is called "{name}"; {nearest(name, names(kind))}')
        return f"{_PACKAGES[kind]}.{name}"
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise InputError(
            f'{where}: the {kind} plugin "{name}" cannot be found; is its package installed, is PYTHONPATH set?'
        )
    return name


def load(kind: str, name: str, where: str | Path = "recipe") -> Any:
    """Import a plugin's module. It must hold the functions of the folder's contract and a `Params` record."""
    module: ModuleType = importlib.import_module(module_name(kind, name, where))
    params = getattr(module, "Params", None)
    if not (isinstance(params, type) and issubclass(params, BaseModel)):
        raise InputError(f'{where}: the {kind} plugin "{name}" has no Params record; see {_PACKAGES[kind]}.__doc__')
    return module


def use(kind: str, wanted: Use, where: str | Path = "recipe") -> tuple[Any, Any]:
    """A plugin's module and its checked parameters."""
    module = load(kind, wanted.name, where)
    return module, parse(module.Params, wanted.params, f'{where}: {kind} "{wanted.name}"')
