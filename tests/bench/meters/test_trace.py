"""An instrument's CSV: its columns, its times, and what is refused."""

from pathlib import Path

import pytest

from edgekit.bench.meters import Reading, Silence, trace

GOLDEN = Path(__file__).parents[2] / "golden" / "energy" / "trace"


def read(name: str, **columns: object) -> list[Reading | Silence]:
    params = trace.Params(file=GOLDEN / f"{name}.csv", **columns)  # type: ignore[arg-type]
    return trace.parse(params, [(0.0, trace.script(params).read_text(encoding="utf-8"))])


def test_power() -> None:
    readings = read("power", offset_s=7.5)
    assert [(r.at_s, r.power_w) for r in readings if isinstance(r, Reading)] == [
        (107.5, 2.0),
        (108.0, 2.5),
        (108.5, 3.0),
    ]
    assert isinstance(readings[0], Reading)
    assert readings[0].step == pytest.approx(0.01)
    assert readings[0].age_s == pytest.approx(0.5)


def test_volts_and_amperes_with_names_of_their_own_and_a_row_cut_off() -> None:
    readings = read("volt-ampere", time="Timestamp (s)", voltage="Volt", current="Amp")
    assert [r.power_w for r in readings if isinstance(r, Reading)] == pytest.approx([2.0, 2.5, 2.55])
    assert isinstance(readings[0], Reading)
    assert readings[0].step == pytest.approx(5.0 * 0.001 + 0.4 * 0.1)


def test_joules_are_preferred() -> None:
    readings = read("energy")
    assert [r.counters[0].energy_j for r in readings if isinstance(r, Reading)] == [10.0, 11.25, 12.0]


@pytest.mark.parametrize(
    ("name", "says"), [("backwards", "ascend"), ("nan", "line 3"), ("other-columns", "name time, and energy, power")]
)
def test_what_is_no_trace_is_refused(name: str, says: str) -> None:
    (silence,) = read(name)
    assert isinstance(silence, Silence)
    assert says in silence.reason


@pytest.mark.parametrize(
    "text",
    [
        "",
        "time,power\n",
        "time,power\n1,2\n",
        "time,power\n1\n",
        '"',
        "\x00\n",
        "time,power\n0e99999999,1\n2,0e99999\n",
    ],
)
def test_text_of_any_kind_raises_nothing(text: str) -> None:
    trace.parse(trace.Params(file=Path("x.csv")), [(0.0, text)])
