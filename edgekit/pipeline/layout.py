"""The batches of a whole training as a pure function of the seed, made an epoch at a time.

    shuffle     7 2 9 4 1 8 3 6     every epoch anew
    windows     7 2 9 4 | 1 8 3 6   fifty batches each, so that an epoch stays well mixed
    by length   2 9 | 7 4 | 1 3 ..  in each window; neighbours make a batch, which saves most of the padding
    shuffle     7 4 | 1 3 | 2 9 ..  the order of the batches

So a run that was killed goes on with the very batches that an unbroken run would have seen, and a run over a million
rows holds a few bytes a row.
"""

from collections.abc import Sequence
from typing import overload

import numpy as np

_WINDOW = 50


class Layout(Sequence[list[int]]):
    """The indices of each batch, in order. Two are equal where their batches are."""

    def __init__(self, lengths: Sequence[int] | np.ndarray, batch_size: int, epochs: float, seed: int) -> None:
        """`lengths`: of the sequences, in tokens. `epochs` may be a fraction; there is at least one batch."""
        self._sizes, self._batch, self._seed = np.asarray(lengths, np.int32), batch_size, seed
        self._per_epoch = -(-len(self._sizes) // batch_size)
        self._total = max(1, round(epochs * self._per_epoch))
        self._epoch = -1

    def __len__(self) -> int:
        return self._total

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[int]]: ...
    def __getitem__(self, index: int | slice) -> list[int] | list[list[int]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._total))]
        epoch, at = divmod(range(self._total)[index], self._per_epoch)
        if epoch != self._epoch:
            self._turn_to(epoch)
        start = int(self._places[at]) * self._batch
        return self._order[start : start + self._batch].tolist()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def _turn_to(self, epoch: int) -> None:
        """Lay out one epoch; earlier ones are only drawn again, for the generator's sake."""
        if epoch < self._epoch or self._epoch < 0:
            self._random, self._epoch = np.random.default_rng(self._seed), -1
        shuffled = np.empty(0, np.int64)
        while self._epoch < epoch:
            shuffled = self._random.permutation(len(self._sizes))
            self._places = self._random.permutation(self._per_epoch).astype(np.int32)
            self._epoch += 1
        self._order = shuffled.astype(np.int32)
        for start in range(0, len(shuffled), self._batch * _WINDOW):
            part = np.sort(self._order[start : start + self._batch * _WINDOW])
            self._order[start : start + len(part)] = part[np.argsort(self._sizes[part], kind="stable")]


def layout(lengths: Sequence[int] | np.ndarray, batch_size: int, epochs: float, seed: int) -> Sequence[list[int]]:
    """The indices of each batch of a whole run.

    >>> layout([5, 9, 5, 9], batch_size=2, epochs=1, seed=0) in ([[0, 2], [1, 3]], [[1, 3], [0, 2]])
    True
    """
    return Layout(lengths, batch_size, epochs, seed)
