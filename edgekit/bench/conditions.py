"""Conditions: what a device is, and how it is before, during and after a measurement.

    facts = facts(transport, folder)                       model, cores, clocks, memory: its fingerprint
    before = wait_until_ready(device, transport, began)    or a DeviceError that says what to do
    with watch(transport, began) as during: ...

Each look is one sh script and one round trip; the scripts read files with the shell's builtins, since starting a
process a file would itself heat a phone. They print `key value` lines, and what reads those is pure.
"""

import re
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from edgekit import devices, progress
from edgekit.bench.meters import GET, charging, plain, whole
from edgekit.bench.transports import Done, Transport
from edgekit.errors import DeviceError, printable
from edgekit.records import Device, Preconditions
from edgekit.results import DeviceFacts, Reading

_SECONDS = 20.0
"""For one look, on a busy board over a slow link."""
_POLL_S = 5.0
_LONGEST_WATCH_S = 24 * 3600.0

# In all scripts `$1` is the root of the file system: empty, or a recorded tree in tests. `echo` and not `printf`, which
# is a program of its own in Android's shell.
FACTS = (
    GET
    + r"""
root=$1
PATH=$root/system/bin:$root/usr/bin:$PATH
if command -v getprop >/dev/null; then
  for p in ro.product.manufacturer ro.product.model ro.build.version.release ro.build.version.sdk ro.product.cpu.abi
  do echo "$p $(getprop "$p")"; done
fi
for f in /proc/device-tree/model /sys/class/dmi/id/sys_vendor /sys/class/dmi/id/product_name \
  /sys/devices/system/cpu/online; do get "$root$f" && echo "${f##*/} $v"; done
while IFS= read -r v; do
  case $v in PRETTY_NAME=*) echo "pretty ${v#*=}" ;; esac
done 2>/dev/null <"$root/etc/os-release"
while IFS= read -r v; do
  case $v in
    "model name"*:* | Hardware*:* | Model*:*) echo "cpu $v" ;;
    processor*) echo "core $v" ;;
  esac
done 2>/dev/null <"$root/proc/cpuinfo"
while IFS= read -r v; do
  case $v in Cpus_allowed_list:*) echo "allowed ${v#*:}" ;; esac
done 2>/dev/null <"$root/proc/self/status"
while IFS= read -r v; do
  case $v in MemTotal:*) echo "ram ${v#*:}"; break ;; esac
done 2>/dev/null <"$root/proc/meminfo"
for d in "$root"/sys/devices/system/cpu/cpu[0-9]*; do
  get "$d/cpufreq/cpuinfo_max_freq" && echo "top ${d##*/cpu} $v"
done
echo "machine $(uname -m)"
echo "kernel $(uname -r)"
v=$(getconf GNU_LIBC_VERSION 2>/dev/null) && echo "libc $v"
for f in "$root"/lib/ld-linux*.so.* "$root"/lib64/ld-linux*.so.* "$root"/lib/ld-musl-*.so.* "$root"/lib/ld-uClibc*; do
  [ -e "$f" ] && echo "loader ${f##*/}"
done
[ "$v" ] || for f in "$root"/lib/libc.so.6 "$root"/lib64/libc.so.6 "$root"/lib/*/libc.so.6; do
  [ -e "$f" ] && v=$(grep -a -o 'stable release version [0-9.]*' "$f" 2>/dev/null) && { echo "libc ${v##* }"; break; }
done
df -P -k "$2" 2>/dev/null | while IFS= read -r v; do echo "df $v"; done
:
"""
)
"""What does not change. `$2` is the work folder."""
_NAMES = """
names() {
  for d in "$1"/sys/class/thermal/thermal_zone*; do
    get "$d/type" || continue; t=$v
    get "$d/mode"
    echo "zone ${d##*/} ${v:-enabled} $t"
  done
}
"""
_LOOK = """
look() {
  get "$1/proc/uptime" && echo "up $v"
  for d in "$1"/sys/class/thermal/thermal_zone*; do get "$d/temp" && echo "temp ${d##*/} $v"; done
  for d in "$1"/sys/class/hwmon/hwmon*; do
    get "$d/name" || continue
    case $v in coretemp | k10temp) t=$v; get "$d/temp1_input" && echo "chip $t $v" ;; esac
  done
  for d in "$1"/sys/devices/system/cpu/cpu[0-9]*; do
    get "$d/cpufreq/scaling_cur_freq" && echo "clock ${d##*/cpu} $v"
    get "$d/cpufreq/scaling_governor" && echo "governor ${d##*/cpu} $v"
  done
  for d in "$1"/sys/class/power_supply/*; do
    get "$d/scope" && [ "$v" = Device ] && continue
    get "$d/type" || continue
    if [ "$v" = Battery ]; then
      for f in status capacity temp; do get "$d/$f" && echo "battery ${d##*/} $f $v"; done
    else get "$d/online" && echo "online $v"; fi
  done
}
"""
READ = (
    GET
    + _NAMES
    + _LOOK
    + """
PATH=$1/system/bin:$PATH
get "$1/proc/stat" && echo "stat $v"
sleep 1
get "$1/proc/stat" && echo "stat $v"
names "$1"
look "$1"
if command -v dumpsys >/dev/null; then
  echo dumpsys; dumpsys battery 2>/dev/null
  echo thermalservice; dumpsys thermalservice 2>/dev/null
fi
:
"""
)
"""One look, with the load over a second, in which 20 devices on one host have something else than work to do."""
WATCH = (
    GET
    + _NAMES
    + _LOOK
    + """
names "$1"
while :; do
  echo reading
  look "$1"
  sleep "$2"
done
"""
)
"""A look every `$2` seconds, without `dumpsys`, which starts a program and wakes a service."""


def facts(transport: Transport, folder: str) -> DeviceFacts:
    """What the device says of itself; `folder` is where its free space counts. Raises `DeviceError`."""
    return parse_facts(_asked(transport, "facts", FACTS, folder))


def read(transport: Transport, began: float) -> Reading:
    """The device's condition now; takes a second. `began` is `time.monotonic()` when the bench began."""
    text = _asked(transport, "reading", READ)
    return parse_reading(text, time.monotonic() - began)


@contextmanager
def watch(transport: Transport, began: float, period_s: float = 5) -> Generator[list[Reading]]:
    """Look at the device while the `with` block works there, by a loop on the device that costs it next to nothing.

    The list fills at the block's end. Raises `DeviceError` where the link broke, unless the block itself failed.
    """
    readings: list[Reading] = []
    stop = threading.Event()
    argv = ["sh", "-c", WATCH, "edgekit-watch", "", f"{period_s:g}"]
    start = time.monotonic() - began
    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(transport.run, argv, _LONGEST_WATCH_S, stop)
        try:
            yield readings
        finally:
            stop.set()
        readings += parse_watched(_text(looking.result()), start, period_s)


def wait_until_ready(device: Device, transport: Transport, began: float, cpus: Sequence[int] | None = None) -> Reading:
    """The first reading that meets the device's preconditions; on `cpus` (`None`: on all cores) governors count.

    Raises `DeviceError` after `wait_s`, and at once where the device does not say what is demanded.
    """
    wanted = device.preconditions
    end = time.monotonic() + wanted.wait_s
    said = False
    while True:
        reading = read(transport, began)
        unmet = missed(wanted, reading, cpus)
        if not unmet:
            return reading
        left = end - time.monotonic()
        if left <= 0 or any(not can_come for _, can_come in unmet):
            waited = f" after {wanted.wait_s:.0f} s" if said else ""
            reasons = "; ".join(reason for reason, _ in unmet)
            raise DeviceError(f"{_record(device.name)}: not ready to be measured{waited}: {reasons}")
        if not said:
            progress.say(f"{device.name}: waiting up to {wanted.wait_s:.0f} s: {unmet[0][0]}")
            said = True
        transport.stopping.wait(min(_POLL_S, left))


def missed(wanted: Preconditions, reading: Reading, cpus: Sequence[int] | None = None) -> list[tuple[str, bool]]:
    """What of the preconditions a reading does not meet: each with what to do, and whether waiting can help."""
    found: list[tuple[str, bool]] = []

    def demand(key: str, seen: object | None, good: bool, now: str, remedy: str) -> None:
        if seen is None:
            found.append((f"preconditions.{key} is set and the device does not say it; remove that key", False))
        elif not good:
            found.append((f"{now}; {remedy} preconditions.{key}", True))

    if (limit := wanted.max_temperature_c) is not None:
        zone, degrees = hottest(reading) or ("", None)
        now = f"{zone} at {degrees or 0:.1f} °C, this benchmark needs {limit:g} °C or less"
        demand("max_temperature_c", degrees, (degrees or 0) <= limit, now, "let it cool or raise")
    if (least := wanted.min_battery_percent) is not None:
        percent = reading.battery_percent
        now = f"battery at {percent or 0:g} %, this benchmark needs {least:g} %"
        demand("min_battery_percent", percent, (percent or 0) >= least, now, "charge it or lower")
    if wanted.charging is not None:
        now = f"it is {'' if reading.charging else 'not '}on external power, this benchmark needs it otherwise"
        remedy = "plug it in or change" if wanted.charging else "unplug it (reach a phone by adb over Wi-Fi) or change"
        demand("charging", reading.charging, reading.charging == wanted.charging, now, remedy)
    if (name := wanted.governor) is not None:
        seen = {core: reading.governors[core] for core in cpus or reading.governors if core in reading.governors}
        others = {core: governor for core, governor in seen.items() if governor != name}
        now = f"governor {by_cores(others)}, this benchmark needs {name}"
        demand("governor", seen or None, not others, now, "set it there (as root) or change")
    if (limit := wanted.max_load) is not None:
        load = reading.load
        now = f"{load or 0:.0%} of its cores are busy, this benchmark needs {limit:.0%} or less"
        demand("max_load", load, (load or 0) <= limit, now, "end what runs there or raise")
    return found


def hottest(reading: Reading) -> tuple[str, float] | None:
    """The hottest zone of those that count, the processor's and the battery's; of all where none is known as such."""
    return max(counting(reading).items(), key=lambda zone: zone[1], default=None)


def big_cores(facts: DeviceFacts, threads: int) -> tuple[int, ...] | None:
    """The `threads` cores with the highest top frequency, in order; `None` where clocks are unknown or all alike.

    Within a cluster core 0 comes last: most kernels serve interrupts there.
    """
    clocks = facts.max_clocks_hz
    if len(clocks) < max(facts.cores, threads) or len(set(clocks.values())) < 2:
        return None
    return tuple(sorted(sorted(clocks, key=lambda core: (-clocks[core], core == 0, core))[:threads]))


# What the scripts print

_COUNTS = re.compile(
    r"cpu|apc|core|pkg|package|tsens|tj-|soc|cluster|battery|bms|acpitz|k10temp|^(big|mid|little)$|gold|silver|prime",
    re.IGNORECASE,
)
_NO_TEMPERATURE = re.compile(r"^soc$|[iv]bat|bcl|vph|lvl", re.IGNORECASE)
"""Zones of Qualcomm's battery current limiter: state of charge, currents and voltages under the guise of degrees."""
_HAL = re.compile(r"Temperature\{mValue=(-?[0-9]{1,4}(?:\.[0-9]{1,6})?), mType=-?[0-9]+, mName=([^,}]{1,60}),")
_PLACEHOLDERS = ("", "To Be Filled By O.E.M.", "System Product Name", "System manufacturer", "Default string", "None")


def counting(reading: Reading) -> dict[str, float]:
    """The temperatures, in degrees Celsius by zone, of processors and batteries; all of them where none is one."""
    return {name: c for name, c in reading.temperatures_c.items() if _COUNTS.search(name)} or reading.temperatures_c


def parse_facts(text: str) -> DeviceFacts:
    """What the facts script printed. Total: what is not there is unknown."""
    pairs = (line.partition(" ") for line in text.splitlines())
    lines = [(key, printable(" ".join(value.split()))) for key, _, value in pairs]
    said = dict(reversed(lines))  # the first of each counts
    tops = [value.split() for key, value in lines if key == "top"]
    cores = _cores(said.get("online", "")) or set(range(sum(key == "core" for key, _ in lines))) or {0}
    cores = cores & (_cores(said.get("allowed", "")) or cores) or cores
    clocks = {int(c): int(khz) * 1000 for c, khz in (top for top in tops if len(top) == 2 and _digits(*top))}
    android = said.get("ro.build.version.release")
    system = f"Android {android} (sdk {said.get('ro.build.version.sdk', '?')})" if android else _linux(said)
    loaders = [value for key, value in lines if key == "loader"]
    return DeviceFacts(
        model=_model(said, [value for key, value in lines if key == "cpu"]),
        os=system,
        abi=said["ro.product.cpu.abi"]
        if said.get("ro.product.cpu.abi")
        else _machine(said.get("machine", ""), loaders),
        libc="bionic" if android else _libc(said.get("libc"), loaders),
        cores=len(cores),
        max_clocks_hz={core: hz for core, hz in sorted(clocks.items()) if core in cores and hz > 0},
        ram_bytes=_kilobytes(said.get("ram", "").removesuffix(" kB")),
        free_bytes=_free(" ".join(value for key, value in lines if key == "df")),
    )


def parse_reading(text: str, at_s: float) -> Reading:
    """What the reading script printed, taken `at_s` seconds after the bench began. Total."""
    text, _, thermal = text.partition("\nthermalservice\n")
    text, _, battery = text.partition("\ndumpsys\n")
    lines = text.splitlines()
    level, powered = _dumped(battery)
    reading = _reading(lines, at_s, _zones(lines))
    update: dict[str, object] = {"load": _load([line[5:] for line in lines if line.startswith("stat ")])}
    if not reading.temperatures_c.keys() - {"battery"}:
        _, _, present = thermal.partition("Current temperatures from HAL")
        hal = {plain(name): float(c) for c, name in _HAL.findall(present) if _sane(float(c))}
        update["temperatures_c"] = {**hal, **reading.temperatures_c}
    if reading.battery_percent is None:
        update["battery_percent"] = level
    if reading.charging is None:
        update["charging"] = powered
    return reading.model_copy(update=update)


def parse_watched(text: str, start_s: float, period_s: float) -> list[Reading]:
    """What the watching loop printed, its first reading at `start_s`; times go by the device's uptime. Total."""
    head, *blocks = (text + "\n").split("reading\n")
    zones = _zones(head.splitlines())
    looks = [block.splitlines() for block in blocks]
    ups = [next((_number(line[3:].split(" ")[0]) for line in look if line.startswith("up ")), None) for look in looks]
    first = next((up for up in ups if up is not None), 0.0)
    return [
        _reading(look, start_s + (i * period_s if up is None else max(up - first, 0)), zones)
        for i, (look, up) in enumerate(zip(looks, ups, strict=True))
    ]


def _reading(lines: Iterable[str], at_s: float, zones: dict[str, str]) -> Reading:
    temperatures: dict[str, float] = {}
    clocks: dict[int, int] = {}
    governors: dict[int, str] = {}
    batteries: dict[str, dict[str, str]] = {}
    supplies: list[str] = []
    for line in lines:
        key, _, value = line.partition(" ")
        name, _, value = value.partition(" ")
        number = whole(value)
        if key == "temp" and name in zones and number is not None and (degrees := _degrees(number)) is not None:
            temperatures[zones[name]] = degrees
        elif key == "chip" and number is not None and _sane(number / 1000):
            temperatures[name] = number / 1000
        elif key == "clock" and _digits(name) and number is not None and number > 0:
            clocks[int(name)] = number * 1000
        elif key == "governor" and _digits(name) and value:
            governors[int(name)] = plain(value)
        elif key == "battery":
            what, _, found = value.partition(" ")
            batteries.setdefault(name, {})[what] = found
            supplies += [f"status {found}"] if what == "status" else []
        elif key == "online" and _digits(name):
            supplies.append(line)
    battery = batteries.get("battery") or next(iter(batteries.values()), {})
    tenths, percent = whole(battery.get("temp", "")), whole(battery.get("capacity", ""))
    if tenths and _sane(tenths / 10):
        temperatures["battery"] = tenths / 10
    return Reading(
        at_s=round(at_s, 3), temperatures_c=temperatures, clocks_hz=clocks, governors=governors,
        battery_percent=percent if percent is not None and 0 <= percent <= 100 else None, charging=charging(supplies),
    )  # fmt: skip


def _zones(lines: Iterable[str]) -> dict[str, str]:
    """The names of the thermal zones by folder; those that are switched off only where all are: on some phones a
    program manages them all."""
    zones = [line.split(" ", 3)[1:] for line in lines if line.startswith("zone ") and line.count(" ") >= 3]
    zones = [zone for zone in zones if not _NO_TEMPERATURE.search(zone[2])]
    names: dict[str, str] = {}
    for folder, _, kind in [zone for zone in zones if zone[1] != "disabled"] or zones:
        name = plain(kind)
        names[folder] = f"{name} ({plain(folder)})" if name in names.values() else name
    return names


def _degrees(raw: int) -> float | None:
    """A zone's value in °C: thousandths by the kernel's rules (Documentation/driver-api/thermal/sysfs-api.rst), tenths
    or whole degrees by some vendors. `None` for what an absent sensor says: 0, -40 °C and less, 150 °C and more."""
    degrees = raw / 1000 if abs(raw) >= 1000 else raw / 10 if abs(raw) >= 150 else float(raw)
    return degrees if _sane(degrees) else None


def _sane(degrees: float) -> bool:
    return degrees != 0 and -40 < degrees < 150


def _load(stats: Sequence[str]) -> float | None:
    """The busy share between two first lines of /proc/stat; waiting for a disk is not busy (proc_stat(5))."""
    rows = [[int(part) for part in stat.split()[1:9] if _digits(part)] for stat in stats]
    if len(rows) != 2 or any(len(row) < 4 for row in rows):
        return None
    spent = [after - before for before, after in zip(*rows, strict=False)]
    total, idle = sum(spent), spent[3] + (spent[4] if len(spent) > 4 else 0)
    return round(min(max((total - idle) / total, 0.0), 1.0), 4) if total > 0 else None


def _dumped(text: str) -> tuple[float | None, bool | None]:
    """Level in percent and external power from `dumpsys battery`; nothing where a test has overridden them."""
    if "(UPDATES STOPPED" in text:
        return None, None
    said: dict[str, str] = {}
    for key, value in re.findall(r"^ +([A-Za-z ]+): *(\S+) *$", text, re.MULTILINE):
        said.setdefault(key, value)
    level, scale = whole(said.get("level", "")), whole(said.get("scale", "")) or 100
    powered = [value == "true" for key, value in said.items() if key.endswith(" powered")]
    percent = 100 * level / scale if level is not None and 0 <= level <= scale else None
    return percent, any(powered) if powered else None


def _model(said: dict[str, str], cpus: Sequence[str]) -> str:
    if said.get("ro.product.model"):
        return _joined(said.get("ro.product.manufacturer", ""), said["ro.product.model"])
    if said.get("model"):
        return said["model"]
    board = _joined(said.get("sys_vendor", ""), said.get("product_name", ""))
    names = {key.strip(): value.strip() for key, _, value in (cpu.partition(":") for cpu in reversed(cpus))}
    cpu = names.get("Model") or names.get("Hardware") or names.get("model name", "")
    return ", ".join(part for part in (board, cpu) if part) or "unknown"


def _joined(vendor: str, product: str) -> str:
    """`Google Pixel 8`, and not `samsung Samsung ...` nor what a maker forgot to fill in."""
    known = [part for part in (vendor, product) if part.strip() not in _PLACEHOLDERS]
    return known[-1] if len(known) == 2 and product.lower().startswith(vendor.lower()) else " ".join(known)


def _linux(said: dict[str, str]) -> str:
    kernel = f"Linux {said['kernel']}" if said.get("kernel") else ""
    return ", ".join(part for part in (said.get("pretty", "").strip("\"'"), kernel) if part) or "unknown"


def _machine(machine: str, loaders: Sequence[str]) -> str:
    """What programs there are made for: a 64-bit kernel may carry a 32-bit system (Raspberry Pi OS does)."""
    if machine == "aarch64" and any("armhf" in name for name in loaders) and not any("aarch64" in n for n in loaders):
        return "armv7l"
    return machine or "unknown"


def _libc(said: str | None, loaders: Sequence[str]) -> str | None:
    if said and (version := re.search(r"[0-9]+\.[0-9]+", said)):
        return f"glibc {version[0]}"
    for mark, name in (("ld-musl", "musl"), ("ld-uClibc", "uClibc"), ("ld-linux", "glibc")):
        if any(loader.startswith(mark) for loader in loaders):
            return name
    return None


def _free(table: str) -> int | None:
    """Available kilobytes in what `df -P -k` printed; the device's name may have any form."""
    found = re.findall(r"([0-9]{1,18}) +[0-9]{1,18} +([0-9]{1,18}) +[0-9]{1,3}% ", table)
    return int(found[-1][1]) * 1024 if found else None


def _kilobytes(text: str) -> int | None:
    number = whole(text)
    return None if number is None or number <= 0 else number * 1024


def _cores(text: str) -> set[int]:
    """The cores of a list such as `0-3,6`; none for anything else."""
    if not re.fullmatch(r"[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*", text.strip()):
        return set()
    ends = [[int(end) for end in part.split("-")] for part in text.strip().split(",")]
    return {core for end in ends for core in range(end[0], end[-1] + 1)}


def _digits(*texts: str) -> bool:
    return all(text.isascii() and text.isdigit() and len(text) < 19 for text in texts)


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", text) else None


def _asked(transport: Transport, what: str, script: str, *arguments: str) -> str:
    return _text(transport.run(["sh", "-c", script, f"edgekit-{what}", "", *arguments], _SECONDS))


def _text(done: Done) -> str:
    return done.stdout.decode(errors="replace")


def _record(name: str) -> str:
    """The file of a device's record as a user would name it; `adb:SERIAL` and the like have none."""
    path = devices.known().get(name)
    if path is None:
        return f"device {name}"
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def by_cores(values: dict[int, str]) -> str:
    """`schedutil on cores 4, 5`, by value."""
    found = {value: [str(core) for core in values if values[core] == value] for value in dict.fromkeys(values.values())}
    return ", ".join(f"{value} on core{'s' * (len(cores) > 1)} {', '.join(cores)}" for value, cores in found.items())
