"""Tables: every figure of the records, in 80 columns."""

from edgekit import tables
from edgekit.records import Built, Metric, Score, StageRow


def built(unchanged: bool = False) -> Built:
    score = Score(
        metric="macro_f1", value=0.71, examples=900,
        parts=(Metric(name="COMMA", value=0.6, support=5000), Metric(name="QUESTION", value=0.5, support=43)),
    )  # fmt: skip
    rows = (
        StageRow(name="teach", artifact="a" * 64, parameters=22_713_216, bytes=90_868_376, score=0.71, metrics=score,
                 latency_s=None, seconds=240.4, cached=False, changed="fine-tuned"),
        StageRow(name="quantize-tflite", artifact="b" * 64, parameters=None, bytes=7_000_000, score=0.69,
                 metrics=score, latency_s=0.00163, seconds=3, cached=unchanged, changed="dynamic",
                 refused=("static: slower",)),
    )  # fmt: skip
    return Built(recipe="r", target="t", bundle="out", zip="out.zip", unchanged=unchanged, stages=rows)


def test_build_table() -> None:
    text = tables.build(built())
    assert max(len(line) for line in text.splitlines()) <= 80
    for figure in ("22.71 M", "90.9 MB", "0.710", "1.63", "240", "0.500", "QUESTION 43", "900 examples"):
        assert figure in text, figure
    assert "refused: static: slower" in text
    assert "out.zip" in text
    assert "Nothing to do" not in text


def test_an_unchanged_build_says_so() -> None:
    assert "Nothing to do" in tables.build(built(unchanged=True))


def test_not_measured_is_empty_not_zero() -> None:
    line = next(line for line in tables.build(built()).splitlines() if line.startswith("teach"))
    assert " 0.00" not in line
