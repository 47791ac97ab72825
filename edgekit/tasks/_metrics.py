"""Scores that several tasks share, by scikit-learn (imported here only: a device that runs a model has none)."""

from collections.abc import Sequence
from typing import Any, Literal

from edgekit.records import Metric, Score

Name = Literal["accuracy", "f1", "macro_f1", "matthews"]


def f1(
    true: Sequence[int], found: Sequence[int], labels: Sequence[str], skip: Sequence[str] = ()
) -> tuple[Metric, ...]:
    """The F1 of each label (but those in `skip`) with its support; `true` and `found` index `labels`."""
    from sklearn import metrics

    sklearn: Any = metrics
    ids = [i for i, name in enumerate(labels) if name not in skip]
    _, _, values, support = sklearn.precision_recall_fscore_support(true, found, labels=ids, zero_division=0)
    return tuple(
        Metric(name=labels[i], value=float(value), support=int(count))
        for i, value, count in zip(ids, values, support, strict=True)
    )


def classification(metric: Name, true: Sequence[int], found: Sequence[int], labels: Sequence[str]) -> Score:
    """One label an example: accuracy, F1 of the second of two labels (GLUE's convention: 1 is the positive one),
    macro F1, Matthews' correlation (1975). `metric` is the headline, the others are parts.
    """
    from sklearn import metrics

    sklearn: Any = metrics
    each = f1(true, found, labels)
    values: dict[str, float] = {
        "accuracy": float(sklearn.accuracy_score(true, found)),
        "macro_f1": sum(part.value for part in each) / len(each),
        "matthews": float(sklearn.matthews_corrcoef(true, found)),
    }
    if len(labels) == 2:
        values["f1"] = each[1].value
    parts = tuple(Metric(name=name, value=value) for name, value in values.items() if name != metric)
    return Score(metric=metric, value=values[metric], examples=len(true), parts=parts)
