"""Encoded data: what a set of features is, in lengths and by a hash."""

import hashlib
from collections.abc import Sequence

import numpy as np

from edgekit.tasks import Feature


def lengths(features: Sequence[Feature]) -> np.ndarray | None:
    """The number of tokens of each sequence, int32; `None` for images."""
    if "input_ids" not in features[0].inputs:
        return None
    return np.fromiter((len(feature.inputs["input_ids"]) for feature in features), np.int32, len(features))


def fingerprint(features: Sequence[Feature]) -> str:
    """The sha256 (hex) over the inputs of all sequences, of text."""
    digest = hashlib.sha256()
    for feature in features:
        for name, array in feature.inputs.items():
            digest.update(f"{name} {len(array)} ".encode() + np.ascontiguousarray(array, np.int64).tobytes())
    return digest.hexdigest()
