"""Any power or energy sensor that Linux's hwmon shows.

    /sys/class/hwmon/hwmon2/{name,energy1_input,energy1_label}      uJ since some start
                            {power1_input,power1_average}           uW, at the moment or over the chip's interval

(Documentation/hwmon/sysfs-interface.rst.) What a sensor is wired to, only the board's maker knows: a graphics card, a
disk, the whole input. So one is used unasked only where it is the only one.
"""

import re
from collections.abc import Sequence

from edgekit.bench.meters import GET, Counter, Reading, Silence, plain, quantum, whole
from edgekit.records import Record

TITLE = "hwmon sensor"

_SCRIPT = (
    GET
    + """\
for d in "$1"/sys/class/hwmon/hwmon*; do
  get "$d/name" || continue; chip=$v
  for f in "$d"/energy*_input "$d"/power*_average "$d"/power*_input; do
    [ -e "$f" ] || continue
    name=${f##*/}; name=${name%_*}
    get "$d/${name}_label"; label=$v
    if get "$f"; then value=$v; else value=unreadable; fi
    printf '%s\\t%s\\t%s\\t%s\\n' "$value" "${f##*/}" "$chip" "$label"
  done
done
"""
)


class Params(Record):
    """`chip` is what the sensor's `name` file says; `channels` are labels, or `power1`, `energy2`; they are summed
    and are of one kind. None of either: the only channel that there is."""

    chip: str | None = None
    channels: tuple[str, ...] = ()


def script(params: Params) -> str:
    """Prints a line a channel: the value in uJ or uW, the file, the chip and the label."""
    return _SCRIPT


def parse(params: Params, printed: Sequence[tuple[float, str]]) -> list[Reading | Silence]:
    """A reading has a counter a channel, or the channels' power. The step of power is told from all readings."""
    chosen = [_chosen(params, text) for _, text in printed]
    steps = quantum(sum(_all_values(channels)) for channels in chosen if isinstance(channels, dict))
    return [
        channels if isinstance(channels, Silence) else _reading(at_s, channels, steps / 1e6)
        for (at_s, _), channels in zip(printed, chosen, strict=True)
    ]


def _all_values(channels: dict[str, tuple[str, int]]) -> list[int]:
    return [value for _, value in channels.values()]


def _reading(at_s: float, channels: dict[str, tuple[str, int]], step: float) -> Reading:
    names = tuple(channels)
    if all(kind == "energy" for kind, _ in channels.values()):
        counters = tuple(Counter(name=name, energy_j=value / 1e6) for name, (_, value) in channels.items())
        return Reading(at_s=at_s, counters=counters, step=1e-6 * len(counters), parts=names)
    return Reading(at_s=at_s, power_w=sum(_all_values(channels)) / 1e6, step=step, parts=names)


def _chosen(params: Params, text: str) -> dict[str, tuple[str, int]] | Silence:
    """The chosen channels: names for people, with `energy` or `power` and the value."""
    rows: dict[tuple[str, str], tuple[str, str]] = {}
    for line in text.splitlines():
        value, file, chip, label, *rest = [*line.split("\t"), "", "", ""]
        if any(rest) or not (match := re.fullmatch(r"((?:energy|power)[0-9]{1,3})_(?:input|average)", file)):
            continue
        rows.setdefault((chip, match[1]), (value, label))  # the average comes before the moment's power
    if not rows:
        return Silence(reason="no power or energy sensors among /sys/class/hwmon", there=False)
    kept = {key: row for key, row in rows.items() if params.chip in (None, key[0])}
    if params.channels:
        kept = {key: row for key, row in kept.items() if key[1] in params.channels or row[1] in params.channels}
    there = ", ".join(plain(f"{chip} {name} {label}") for (chip, name), (_, label) in rows.items())
    if len(kept) != max(1, len(params.channels)):
        return Silence(reason=f"say which sensors by chip and channels: there are {there}", there=True)
    if len({name.rstrip("0123456789") for _, name in kept}) > 1:
        return Silence(reason=f"energy and power do not add up; choose channels of one kind of {there}", there=True)
    found: dict[str, tuple[str, int]] = {}
    for (chip, name), (text_value, label) in kept.items():
        title = plain(f"{chip} {label or name}")
        value = whole(text_value)
        if value is None:
            return Silence(reason=f"{title} cannot be read (root may), or says {plain(text_value)!r}", there=True)
        found[title if title not in found else f"{title} {name}"] = (name.rstrip("0123456789"), value)
    return found
