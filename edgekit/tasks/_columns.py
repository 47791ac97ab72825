"""Cells of a row, checked: what is wrong is one `InputError` that names file, row and column."""

import math
from collections.abc import Sequence
from typing import Any

from edgekit.errors import InputError, nearest
from edgekit.tasks import Row


def cell(row: Row, column: str) -> Any:
    """The value in `column`; missing, null, NaN and blank are errors."""
    if column not in row.values:
        raise InputError(f'{row.where}: there is no column "{column}"; {nearest(column, map(str, row.values))}')
    value = row.values[column]
    if value is None or value in ("", [], b"") or (isinstance(value, float) and math.isnan(value)):
        raise InputError(f'{row.where}: column "{column}" is empty (found {value!r}); fill it in or remove the row')
    if isinstance(value, str) and not value.strip():
        raise InputError(f'{row.where}: column "{column}" holds only white space; fill it in or remove the row')
    return value


def text(row: Row, column: str) -> str:
    """A text."""
    value = cell(row, column)
    if not isinstance(value, str):
        raise _unlike(row, column, "a text", value)
    return _encodable(row, column, value)


def number(row: Row, column: str) -> float:
    """A finite number; one written as text (CSV) counts."""
    value = cell(row, column)
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise _unlike(row, column, "a finite number", value)
    return found


def label(row: Row, column: str) -> str:
    """A label: a text or a whole number, as text."""
    value = cell(row, column)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _unlike(row, column, "a label (a text or a whole number)", value)
    return str(value).strip()


def label_id(row: Row, column: str, labels: Sequence[str]) -> int:
    """The index of a label in the label set."""
    return index(row, column, label(row, column), labels)


def index(row: Row, column: str, found: str, labels: Sequence[str]) -> int:
    """The index of `found`, from that column, in the label set."""
    if found not in labels:
        raise InputError(
            f'{row.where}: column "{column}": label "{found}" is not in the label set; {nearest(found, labels)}'
        )
    return labels.index(found)


def words(row: Row, column: str) -> tuple[str, ...]:
    """A list of texts; one text is split at white space, since CSV has no lists."""
    value = cell(row, column)
    found: Any = value.split() if isinstance(value, str) else value
    if not isinstance(found, list | tuple):
        raise _unlike(row, column, "a list of texts", value)
    for place, word in enumerate(found, 1):
        if not isinstance(word, str) or not word.strip():
            raise _unlike(row, column, f"a text that is not blank at place {place} of its list", word)
    _encodable(row, column, " ".join(found))
    return tuple(found)


def label_set(given: Sequence[str | int] | None, found: set[str], column: str) -> tuple[str, ...]:
    """The recipe's labels, or those found in the training rows: numbers by value, else in alphabetical order."""
    if given is not None:
        labels = tuple(map(str, given))
        if len(set(labels)) < len(labels):
            raise InputError(f'recipe: task: key "labels" names a label twice: {", ".join(labels)}')
    elif all(name.isdecimal() for name in found):
        labels = tuple(sorted(found, key=int))
    else:
        labels = tuple(sorted(found))
    if len(labels) < 2:
        raise InputError(
            f'training data: column "{column}" holds {labels or "no labels"}; a classifier needs at least two'
        )
    return labels


def given_texts(given: Sequence[str], names: tuple[str, ...], what: str) -> tuple[str, ...]:
    """What a user gave to be answered, checked to be one text for each of `names`."""
    if len(given) != len(names):
        raise InputError(f"{what} takes {len(names)} input(s), {' and '.join(names)}; found {len(given)}")
    for name, value in zip(names, given, strict=True):
        if not value.strip():
            raise InputError(f"{what}: the {name} is empty; give some text")
    return tuple(given)


def _encodable(row: Row, column: str, value: str) -> str:
    """`value`, checked: JSON can write half a surrogate pair, which no tokenizer takes."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f'{row.where}: column "{column}" is not valid Unicode: {error}; repair the row') from None
    return value


def _unlike(row: Row, column: str, wanted: str, found: Any) -> InputError:
    shown = repr(found) if len(repr(found)) <= 60 else repr(found)[:57] + "..."
    return InputError(f'{row.where}: column "{column}" must hold {wanted}, found {shown} ({type(found).__name__})')
