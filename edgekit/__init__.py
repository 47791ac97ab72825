"""edgekit: from a trained transformer teacher to a model that provably fits and runs on a phone or board."""

__version__ = "0.1.0"
