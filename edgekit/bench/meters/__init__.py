"""Meters: where energy is read. A file a source; each is a small shell script for the device and a pure parser.

The script prints one reading; `edgekit.bench.energy` runs it at a steady rate on the device itself (the link adds no
time to it) and integrates. A source either counts energy (`energy_j`, which may wrap) or shows power (`power_w`).
"""

from typing import Any, Protocol

from edgekit.records import Record


class Reading(Record):
    """One reading. A meter gives `energy_j` or `power_w` always, never both and never neither."""

    energy_j: float | None = None
    """A counter's value in joules, from an arbitrary start."""
    power_w: float | None = None
    """Taken from the source; always positive while the device works, whatever the vendor's sign."""
    wrap_j: float | None = None
    """Where the counter starts again at 0; `None`: nowhere that matters."""
    step: float
    """The source's resolution: joules of a counter, watts of a power reading."""
    charging: bool | None = None
    """Whether the device is on external power, where this source knows."""


class Meter(Protocol):
    """What a module in this folder holds. `params` is its own `Params`: what a device record says under `[meter]`."""

    Params: type[Any]
    TITLE: str
    """What it reads, for people: `battery gauge (current_now x voltage_now)`."""

    def script(self, params: Any) -> str:
        """A POSIX sh script that prints one reading as lines of text, with shell builtins as far as that goes; it
        prints nothing where the device has no such source. `$1` is the root of the file system (`""`, or a
        recorded tree in tests).
        """
        ...

    def parse(self, params: Any, text: str) -> Reading | None:
        """What the script printed as a reading; `None` where the source is not there or cannot be read. Raises
        `DeviceError` for text that is neither."""
        ...
