"""Two bundles' recipes, step by step: the baseline's with its first changes taken over from the candidate's.

baseline            teach  distill(layers 4)  prune(heads 6)  export
the data changed    teach  distill(layers 4)  prune(heads 6)  export      with the candidate's data
distill changed     teach  distill(layers 3)  prune(heads 6)  export
prune changed       teach  distill(layers 3)  prune(heads 4)  export      the candidate's
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.bundle import Manifest
from edgekit.errors import InputError
from edgekit.recipe import Recipe
from edgekit.records import Artifact, Record, Target, parse


class Suspect(Record):
    """A commit or step that may have broken the gate."""

    name: str
    """A commit's hash, or the name of a step (`prune-2`), `data`, `target` or `rebuilt`."""
    what: str
    """A commit's subject and its author's date, or what changes at the step."""
    changes: tuple[str, ...] = ()
    """Of a step: what differs, `key: old -> new`."""


@dataclass(frozen=True)
class Splice:
    """A recipe whose beginning is the candidate's and whose rest is the baseline's; `suspect` is the last change."""

    suspect: Suspect
    recipe: dict[str, Any]
    target: Target


def splices(old: Manifest, new: Manifest) -> tuple[Splice, ...]:
    """The recipes from the baseline's, as it is, to the candidate's, each with one more difference taken over.

    First what all stages share (`data`: the task, the data, their length and the seed), then the `target`, then each
    step that differs, is new or is gone, in order. Names and tolerances, which change no model, stay as they were.
    Raises `InputError` where nothing differs, or where the steps stand in another order.
    """
    was, now = (
        parse(Recipe, m.recipe, f"{m.name}: the recipe in the bundle").model_dump(mode="json") for m in (old, new)
    )
    recipe, target = was, old.target
    again = "the baseline's own recipe, built again here: code, data or library versions changed since"
    row = [Splice(Suspect(name="rebuilt", what=again), recipe, target)]
    shared = {key: now[key] for key in ("task", "data", "max_length", "seed")}
    if changes := tuple(differences({key: was[key] for key in shared}, shared)):
        recipe = {**recipe, **shared}
        row.append(Splice(Suspect(name="data", what="what all stages share", changes=changes), recipe, target))
    said = {"name", "description"}
    if changes := tuple(differences(*(m.target.model_dump(mode="json", exclude=said) for m in (old, new)))):
        target = new.target
        row.append(Splice(Suspect(name="target", what="what is built for", changes=changes), recipe, target))
    before, after = _named(was["step"]), _named(now["step"])
    steps: dict[str, dict[str, Any] | None] = {name: before.get(name) for name in _aligned(list(before), list(after))}
    for name in steps:
        if changes := tuple(differences(before.get(name, {}), after.get(name, {}))):
            steps = {**steps, name: after.get(name)}
            recipe = {**recipe, "step": [step for step in steps.values() if step is not None]}
            what = "a step that changed" if name in before and name in after else "a step that is new"
            what = what if name in after else "a step that is gone"
            row.append(Splice(Suspect(name=name, what=what, changes=changes), recipe, target))
    if len(row) == 1:
        raise InputError(
            f"bisect: both bundles have the same recipe and target, so no step of it is to blame, but code, data or "
            f"library versions are: {'; '.join(unlike(old.stages, new.stages))}"
        )
    return tuple(row)


def _named(steps: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The steps by stage and number, as a build names them: `prune`, `prune-2`."""
    named: dict[str, dict[str, Any]] = {}
    for i, step in enumerate(steps):
        number = 1 + sum(other["stage"] == step["stage"] for other in steps[:i])
        named[step["stage"] if number == 1 else f"{step['stage']}-{number}"] = step
    return named


def _aligned(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """Both sequences in one that keeps the order of each."""
    if [name for name in old if name in new] != [name for name in new if name in old]:
        raise InputError(
            "bisect: the steps of the two recipes stand in another order, so they cannot be exchanged one by one; "
            f"the baseline's: {', '.join(old)}; the candidate's: {', '.join(new)}"
        )
    merged: list[str] = []
    rest = list(new)
    for name in old:
        if name in new:
            at = rest.index(name)
            merged += rest[:at]
            del rest[: at + 1]
        merged.append(name)
    return merged + rest


def differences(old: Any, new: Any) -> Iterator[str]:
    """What differs between two recipes' parts.

    >>> list(differences({"heads": 8, "method": {"name": "kd"}}, {"heads": 4, "method": {"name": "kd"}}))
    ['heads: 8 -> 4']
    """
    before, after = dict(_leaves(old)), dict(_leaves(new))
    for key in dict.fromkeys((*before, *after)):
        if before.get(key, "none") != after.get(key, "none"):
            yield f"{key}: {before.get(key, 'none')} -> {after.get(key, 'none')}"


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Each value that holds no others, as JSON, by its dotted key; what is `None` or empty counts as not there."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inner is None and value is not None:
        yield key, json.dumps(value, ensure_ascii=False)
    for name, part in inner or ():
        yield from _leaves(part, f"{key}.{name}" if key else str(name))


def unlike(old: Sequence[Artifact], new: Sequence[Artifact]) -> tuple[str, ...]:
    """What differs in how two bundles of the same recipe were made: library versions, and the first stage that does."""
    before = {artifact.name: artifact for artifact in old}
    pairs = [(before[artifact.name], artifact) for artifact in new if artifact.name in before]
    versions = {
        f"{library} {a.versions.get(library, 'none')} -> {b.versions.get(library, 'none')}": None
        for a, b in pairs
        for library in sorted({*a.versions, *b.versions})
        if a.versions.get(library) != b.versions.get(library)
    }
    first = next(((a, b) for a, b in pairs if a.id != b.id), None)
    if first is None:
        return (*versions, "no stage differs")
    a, b = first
    others = () if versions else ("no library version differs: it is code, weights or data",)
    return (*versions, f"the first stage that differs is {a.name} ({a.id[:12]} -> {b.id[:12]})", *others)
