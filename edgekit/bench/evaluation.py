"""The task's whole evaluation set, to be scored on a device: read again from where the recipe says it is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import plugins, progress
from edgekit.bench.check import Subject
from edgekit.bench.figures import resamples
from edgekit.bundle import Manifest
from edgekit.errors import InputError, NotGoodEnough
from edgekit.records import Score, Use, parse
from edgekit.results import ScoreChange
from edgekit.tasks import Arrays, Feature


@dataclass(frozen=True)
class Evaluation:
    """The dev split, encoded for one bundle. `features` are unpadded, in the corpus's order."""

    task: Any
    params: Any
    labels: tuple[str, ...]
    examples: Sequence[Any]
    features: Sequence[Feature]

    def score(self, outputs: Sequence[Arrays]) -> tuple[Score, list[float]]:
        """The score of unpadded `outputs`, one a feature, and those of resampled examples (`figures.resamples`)."""

        def one(examples: Sequence[Any], features: Sequence[Feature], outputs: Sequence[Arrays]) -> Score:
            return self.task.score(self.params, examples, self.labels, features, outputs)

        score = one(self.examples, self.features, outputs)
        if not math.isfinite(score.value):
            raise NotGoodEnough(f"the score {score.metric} is {score.value}: the device's answers do not vary")
        with progress.bar("the score's interval"):
            return score, resamples(lambda *of: one(*of).value, self.examples, self.features, outputs)


def read(subject: Subject, base: Path, like: Manifest | None = None) -> Evaluation:
    """The evaluation set of the recipe that built the bundle, or the bundle `like`, whose task then also says how it is
    scored; relative paths start at `base`.

    Raises `InputError` where the data is not there (any more), or gives no rows.
    """
    manifest = subject.manifest
    where = f"{subject.path}: manifest.json"
    task, params = plugins.use("tasks", manifest.task, where)
    corpus, corpus_params = plugins.use(
        "corpora", parse(Use, (like or manifest).recipe.get("data"), f"{where}: recipe"), where
    )
    if find_spec("sklearn") is None:  # known before minutes are spent on a device
        raise InputError("scoring needs scikit-learn: pip install 'edgekit[build]'")
    with progress.bar("read evaluation data"):
        try:
            rows = list(corpus.rows(corpus_params, "dev", base))
        except InputError as error:
            raise InputError(f"scoring: {error}; --base says where the recipe's relative paths start") from None
        examples = task.examples(params, rows, manifest.labels, training=False)
        if not examples:
            raise InputError(f"{subject.path}: the recipe's data has no dev rows here; there is nothing to score")
        encoder = task.encoder(params, subject.folder / manifest.encoder, manifest.max_length)
        features = task.features(params, examples, manifest.labels, encoder)
    return Evaluation(task, params, manifest.labels, examples, features)


def change(a: tuple[Score, Sequence[float]], b: tuple[Score, Sequence[float]]) -> ScoreChange:
    """The difference of two `Evaluation.score`s on the same examples. Its standard error is the deviation over the
    resamples, which drew the same examples for both (the paired bootstrap; Koehn 2004).
    """
    (first, of_first), (second, of_second) = a, b
    if first.examples != second.examples:
        raise InputError(
            f"the bundles were scored on {first.examples} and {second.examples} examples of the same data, so their "
            "tasks differ and their scores cannot be compared; gate them with --no-score"
        )
    return ScoreChange(
        metric=first.metric, baseline=first.value, candidate=second.value, examples=first.examples,
        standard_error=float(np.std(np.subtract(of_first, of_second), ddof=1)),
    )  # fmt: skip
