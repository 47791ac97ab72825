"""What two models said of one small batch, at random, and the value of a loss of it; a helper, in no test file.

The batch has two rows of 4 and 2 tokens. Values are float64, so that NumPy's and finite differences are sharp; losses
take them to float32.
"""

from collections.abc import Mapping

import numpy as np
import torch

from edgekit import plugins
from edgekit.pipeline.signals import Signals
from edgekit.records import Use

BATCH, LENGTH, WIDTH, HEADS, SIZE, LABELS = 2, 4, 6, 2, 3, 3
LENGTHS = (4, 2)
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
REAL = MASK.numpy().astype(bool)


def signals(
    seed: int,
    layers: int,
    heads: int = HEADS,
    shape: tuple[int, ...] = (BATCH, LENGTH, LABELS),
    width: int = WIDTH,
    size: int = SIZE,
    output: str = "logits",
) -> Signals:
    """Random signals of a model of `layers` layers; `shape` is that of its one `output`."""
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    return Signals(
        outputs={output: random(*shape)},
        hidden={i: random(BATCH, LENGTH, width) for i in range(layers + 1)},
        queries={i: random(BATCH, heads, LENGTH, size) for i in range(1, layers + 1)},
        keys={i: random(BATCH, heads, LENGTH, size) for i in range(1, layers + 1)},
        values={i: random(BATCH, heads, LENGTH, size) for i in range(1, layers + 1)},
        mask=MASK,
        depth=layers,
    )


def mapped(said: Signals, function: object) -> Signals:
    """`said` with every tensor but the mask through `function`."""
    assert callable(function)
    parts: Mapping[str, Mapping[object, torch.Tensor]] = {
        part: {key: function(tensor) for key, tensor in getattr(said, part).items()}
        for part in ("outputs", "hidden", "queries", "keys", "values")
    }
    return Signals(**parts, mask=said.mask, depth=said.depth)  # type: ignore[arg-type]


def value(
    name: str, student: Signals, teacher: Signals, batch: dict[str, torch.Tensor] | None = None, **params: object
) -> torch.Tensor:
    """The loss `name` of the two, with `params` as a recipe has them."""
    loss, parsed = plugins.use("losses", Use.model_validate({"name": name, **params}))
    assert loss.reads(parsed, student.depth, teacher.depth) is not None
    return loss.loss(parsed, student, teacher, batch or {})


def softmax(z: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def scores(said: Signals, layer: int) -> np.ndarray:
    """q·k / sqrt(d), [batch, heads, length, length]."""
    query, key = said.queries[layer].numpy(), said.keys[layer].numpy()
    return np.einsum("bhld,bhmd->bhlm", query, key) / np.sqrt(query.shape[-1])
