"""Meters: where energy is read. A file a source; each is a small shell script for the device and a pure parser.

The script prints what the source says once; `edgekit.bench.energy` runs it at a steady rate on the device itself (the
link adds no time to it) and integrates. A source either counts energy (`Counter`, which may wrap) or shows power.
An instrument beside the device has no script: it writes a file on this host, with its own times.
"""

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from edgekit.errors import printable
from edgekit.records import Record


class Counter(Record):
    """One energy counter's value. `name` is text from the device, made plain."""

    name: str
    energy_j: float
    """Joules from an arbitrary start."""
    wrap_j: float | None = None
    """Where it starts again at 0; `None`: nowhere that matters."""


class Reading(Record):
    """What a source said at one moment: counters, or `power_w`, never both and never neither."""

    at_s: float
    """Epoch seconds: of the device's clock, or of this host's for a file."""
    counters: tuple[Counter, ...] = ()
    """Those that add up to what is measured. Each wraps on its own."""
    power_w: float | None = None
    """Positive while the device works, whatever the vendor's sign."""
    step: float
    """The source's resolution: joules of counters, watts of power."""
    age_s: float = 0
    """How old a power reading may be: sources that refresh slowly show the past."""
    charging: bool | None = None
    """Whether the device is on external power, where this source knows."""
    parts: tuple[str, ...] = ()
    """Names of what is summed, made plain, for people."""


class Silence(Record):
    """Why there is no reading. `there` tells a source that exists but cannot be used from one that does not exist."""

    reason: str
    there: bool


class Meter(Protocol):
    """What a module in this folder holds. `params` is its own `Params`: what a device record says under `[meter]`."""

    Params: type[Any]
    TITLE: str
    """What it reads, for people: `battery gauge (current_now x voltage_now)`."""

    def script(self, params: Any) -> str | Path:
        """A POSIX sh script that prints one reading as lines of text, with shell builtins as far as that goes; it
        prints nothing where the device has no such source. `$1` is the root of the file system (`""`, or a
        recorded tree in tests). A `Path` is a file on this host that an instrument writes.
        """
        ...

    def parse(self, params: Any, printed: Sequence[tuple[float, str]]) -> list[Reading | Silence]:
        """What the script printed, with the time of each, as readings: one each, in order. They come together since
        units are told from a whole pass, not from one value. Of a file it is one text, and its time means nothing.

        Pure, and total: text of any kind is a `Silence`, never an exception.
        """
        ...


GET = 'get() { v=; { read -r v <"$1"; } 2>/dev/null; [ -n "$v" ]; }\n'
"""Shell: `get FILE` puts the first line of a file into `$v` without starting a process; false where it has none."""

SUPPLIES = """\
for d in "$1"/sys/class/power_supply/*; do
  get "$d/scope" && [ "$v" = Device ] && continue
  get "$d/type" || continue
  if [ "$v" = Battery ]; then get "$d/status" && printf 'status %s\\n' "$v"
  else get "$d/online" && printf 'online %s\\n' "$v"; fi
done
"""
"""Shell, after `GET`: what the batteries and the supplies beside them say, for `charging`. A mouse's is left out."""


def charging(lines: Iterable[str]) -> bool | None:
    """Whether external power is there, from the lines of `SUPPLIES`; `None` where nothing says so.

    Any status but `Discharging` means it is (`Full` and `Not charging` are states of a plugged device:
    Documentation/ABI/testing/sysfs-class-power), and so does any other supply that is online: a phone on a weak
    port discharges while the port carries a part of its current.
    """
    said = [line.strip() for line in lines]
    plugged = {"status Charging", "status Full", "status Not charging"}
    if any(line in plugged or (line.startswith("online ") and line != "online 0") for line in said):
        return True
    return False if "status Discharging" in said or "online 0" in said else None


def plain(name: str) -> str:
    """A name that came from a device, fit for a message: printable, on one line, not long."""
    return printable(name.strip())[:60]


def whole(text: str) -> int | None:
    """A decimal integer of at most 64 bits, as sysfs prints them; `None` for any other text."""
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,20}", text.strip()) else None


def quantum(values: Iterable[int]) -> int:
    """The step that `values` move in: the greatest common divisor of their differences, at least 1."""
    known = list(values)
    return math.gcd(*(value - known[0] for value in known)) or 1
