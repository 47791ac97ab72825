"""Corpora: where rows come from. A plugin holds a `Params` record and the functions of `Corpus`. No torch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

from edgekit.tasks import Row

Split = Literal["train", "dev"]


class Corpus(Protocol):
    """What a module in this folder holds. `params` is its own `Params`; `base` the folder of the recipe file."""

    Params: type[Any]

    def rows(self, params: Any, split: Split, base: Path) -> Iterator[Row]:
        """The rows of one split, in a fixed order, as a stream."""
        ...

    def fingerprint(self, params: Any, base: Path) -> str:
        """A sha256 (hex) of everything that `rows` can give, cheap to make: it is asked at every build."""
        ...
