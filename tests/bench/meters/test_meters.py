"""What the meters share: the helpers, and that no text from a device makes a parser fall."""

import random
from pathlib import Path

import pytest

from edgekit import plugins
from edgekit.bench.meters import Reading, charging, plain, quantum, whole
from edgekit.records import Use

GOLDEN = Path(__file__).parents[2] / "golden" / "energy"
DEVICE_METERS = [name for name in plugins.names("meters") if name != "trace"]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["status Discharging", "online 0"], False),
        (["status Discharging"], False),
        (["online 0"], False),
        (["status Charging"], True),
        (["status Full", "online 0"], True),
        (["status Not charging"], True),
        (["status Discharging", "online 1"], True),
        (["status Discharging", "online 2"], True),  # a supply whose voltage can be set
        (["status Unknown"], None),
        ([], None),
    ],
)
def test_external_power(lines: list[str], says: bool | None) -> None:
    assert charging(lines) is says


def test_helpers() -> None:
    assert plain("  a\x1b[31m\nb  ") == "a?[31m / b"
    assert len(plain("x" * 1000)) == 60
    assert [whole(text) for text in ("-12", " 7\n", "1e3", "0x1", "", "9" * 21, "٣")] == [-12, 7, *[None] * 5]
    assert quantum([1000, 1500, 4250]) == 250
    assert quantum([7, 7]) == quantum([7]) == quantum([]) == 1


@pytest.mark.parametrize("name", DEVICE_METERS)
def test_damaged_text_raises_nothing_and_gives_one_answer_each(name: str) -> None:
    module, params = plugins.use("meters", Use(name=name))
    dice = random.Random(3)
    whole_texts = [path.read_text(encoding="utf-8") for path in sorted((GOLDEN / name).glob("*.txt"))]
    texts = [
        "5000 800 5000 VDD_IN\n",
        "77 9 package-0\n",
        "battery battery\ncurrent_now -5\nvoltage_now 4000000\nstatus Discharging\n",
        "battery battery\nbattery b\ndumpsys\n",
        "dumpsys\n",
        "12\tpower1_input\tchip\tlabel\n",
        "\x00",
        "CH1(T=1)[VDD_CPU], 1",
        *whole_texts,
    ]
    damaged = [text[: dice.randrange(len(text) + 1)] + chr(dice.randrange(0x250)) + text[dice.randrange(len(text)) :]
               for text in texts for _ in range(40)]  # fmt: skip
    answers = module.parse(params, [(float(n), text) for n, text in enumerate(damaged)])
    assert len(answers) == len(damaged)
    for n, answer in enumerate(answers):
        if isinstance(answer, Reading):
            assert answer.at_s == n
            assert (answer.power_w is None) == bool(answer.counters)
    assert module.parse(params, []) == []
