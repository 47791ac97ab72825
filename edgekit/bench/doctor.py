"""What stands between a device and a measurement: a list of all known devices, and a close look at one."""

import importlib.util
import threading
import time
import tomllib
from collections.abc import Iterable, Iterator, Sequence

from edgekit import devices
from edgekit.bench import conditions, deploy, energy, placed
from edgekit.bench.meters import plain
from edgekit.bench.runner import build
from edgekit.bench.transports import Transport, adb
from edgekit.errors import EdgekitError, InputError
from edgekit.records import Device, Format
from edgekit.results import DeviceFacts, Doctor, Finding, Reading, State

_PATIENCE_S = 8.0
"""For the whole list. A device that takes longer to answer is called not reachable."""
_LEAST_FREE = 200_000_000
"""A kit of both runtimes is 60 MB, a model up to 100, and each upload stands beside its predecessor for a while."""
_SECONDS = 20.0
_MODULES: dict[Format, tuple[str, ...]] = {"onnx": ("onnxruntime",), "tflite": ("ai_edge_litert", "tflite_runtime")}
_WHEELS: dict[Format, str] = {"onnx": "onnxruntime", "tflite": "ai-edge-litert (tflite-runtime on 32-bit ARM)"}
_PYTHON = """\
import importlib.util as u, platform
print(platform.python_version(), *[m for m in ("numpy", "onnxruntime", "ai_edge_litert", "tflite_runtime") \
if u.find_spec(m)])
"""
# Makes an empty group and takes it away again: being root does not say that a container may.
_LIMITS = """\
root=$1/sys/fs/cgroup group=edgekit-$$
if [ -e "$root/cgroup.controllers" ]; then
  read -r found <"$root/cgroup.controllers"
  case " $found " in *" memory "*)
    [ -w "$root/cgroup.subtree_control" ] && mkdir "$root/$group" && rmdir "$root/$group" && echo cgroup-v2 ;;
  esac
else mkdir "$root/memory/$group" && rmdir "$root/memory/$group" && echo cgroup-v1
fi 2>/dev/null
:
"""


def states() -> tuple[State, ...]:
    """Every known record and every phone that adb shows, in order of names; takes a few seconds at most.

    A broken record is a row of its own, and so is what does not answer.
    """
    rows: dict[str, State] = {}
    records: dict[str, Device] = {}

    def add(names: Iterable[str]) -> None:
        for name in names:
            try:
                records[name] = devices.find(name)
            except InputError as error:
                rows[name] = State(name=name, description="", link=None, state="broken record", missing=(str(error),))

    add(devices.known())
    end = time.monotonic() + _PATIENCE_S
    add(_attached(records.values()))  # a phone's record starts from `android`, which may be the user's, and broken
    answers: dict[str, str] = {}
    # daemons: what hangs is not awaited, neither here nor at the program's end
    looks = [
        threading.Thread(target=lambda name=name: answers.update({name: _answer(records[name])}), daemon=True)
        for name in records
    ]
    for look in looks:
        look.start()
    for look in looks:
        look.join(max(end - time.monotonic(), 0.1))
    late = f"it gave no answer within {_PATIENCE_S:.0f} s; is it on, and in this network?"
    rows |= {name: _state(device, answers.get(name, late)) for name, device in records.items()}
    return tuple(rows[name] for name in sorted(rows))


def doctor(device: Device) -> Doctor:
    """All that a measurement on `device` rests on, each with its verdict. A link that fails is a finding, too."""
    findings = list(_findings(device))
    good = all(finding.verdict != "bad" for finding in findings)
    return Doctor(device=device.name, good=good, findings=tuple(findings))


def _attached(known: Iterable[Device]) -> list[str]:
    """`adb:SERIAL` for each phone that no record names. Where there is no adb, the records that need it say so."""
    named = {device.link.params.get("serial") for device in known if device.link}
    try:
        return [f"adb:{serial}" for serial, _, _ in adb.devices(adb.Params()) if serial not in named]
    except EdgekitError:
        return []


def _answer(device: Device) -> str:
    """What keeps a device with a link from being reached; nothing where it answers."""
    if device.link is None:
        return ""
    try:
        with placed.connect(device)[0] as transport:
            transport.run(["true"], _PATIENCE_S).good(f"{transport.name}: asking for a sign of life")
    except EdgekitError as error:
        return str(error)
    return ""


def _state(device: Device, answer: str) -> State:
    kit = _kit(device)
    missing = [f"{kit.found}: {kit.remedy}"] if kit.verdict == "bad" else []
    if device.link is None:
        missing.insert(0, f'a record of your own with base = "{device.name}" and its link')
    elif answer:
        missing.insert(0, answer)
    state = "no link" if device.link is None else "not reachable" if answer else "incomplete" if missing else "ready"
    return State(
        name=device.name, description=device.description, link=device.link and device.link.name, state=state,
        missing=tuple(missing),
    )  # fmt: skip


def _findings(device: Device) -> Iterator[Finding]:
    what = "link"
    try:
        link, workdir = placed.connect(device)
        with link as transport:
            yield Finding(what=what, found=transport.name, verdict="good")
            what = "work folder"
            with deploy.opened(transport, workdir) as desk:
                facts = conditions.facts(transport, desk.folder)
                yield _space(desk.folder, facts)
            what = "device"
            yield from _there(device, transport, facts)
    except EdgekitError as error:
        yield Finding(what=what, found=str(error), verdict="bad")  # the message says what to do
    yield _kit(device)


def _there(device: Device, transport: Transport, facts: DeviceFacts) -> Iterator[Finding]:
    """What can be said once the device answers."""
    yield Finding(what="model", found=f"{facts.model}, {facts.os}", verdict="note")
    yield _abi(device, facts)
    yield from _cores(device, facts)
    yield from _libc(device, facts)
    yield _python(device, transport)
    reading = conditions.read(transport, time.monotonic())
    cpus = conditions.big_cores(facts, device.runtime.threads)
    for unmet, _ in conditions.missed(device.preconditions, reading, cpus):
        found, _, remedy = unmet.partition("; ")
        yield Finding(what="preconditions", found=found, verdict="bad", remedy=remedy)
    yield _governors(reading, cpus)
    yield _zones(reading)
    yield _power(reading)
    yield from _energy(device, transport)
    yield _limits(transport)


def _space(folder: str, facts: DeviceFacts) -> Finding:
    if facts.free_bytes is None:
        return Finding(what="work folder", found=f"{folder}, of unknown size", verdict="unknown")
    found = f"{folder}, {facts.free_bytes / 1e6:.0f} MB free"
    if facts.free_bytes < _LEAST_FREE:
        remedy = f"free {_LEAST_FREE / 1e6:.0f} MB there, or name a folder on another disk in the record: workdir"
        return Finding(what="work folder", found=found, verdict="bad", remedy=remedy)
    return Finding(what="work folder", found=found, verdict="good")


def _abi(device: Device, facts: DeviceFacts) -> Finding:
    if placed.same_abi(device, facts):
        return Finding(what="ABI", found=facts.abi, verdict="good")
    fit = {"arm64-v8a": "linux-arm64", "armeabi-v7a": "linux-armv7"}.get(placed.abi_of(facts.abi))
    remedy = f'base your record on "{fit}"' if fit else "name a record with that ABI"
    return Finding(what="ABI", found=f"{facts.abi}, the record says {device.abi}", verdict="bad", remedy=remedy)


def _cores(device: Device, facts: DeviceFacts) -> Iterator[Finding]:
    clusters: dict[int, list[int]] = {}
    for core, hz in facts.max_clocks_hz.items():
        clusters.setdefault(hz, []).append(core)
    parts = [f"{_ranges(cores)} up to {hz / 1e9:.2f} GHz" for hz, cores in sorted(clusters.items())]
    yield Finding(
        what="cores", found=f"{facts.cores}: {', '.join(parts) or 'top clocks unknown'}",
        verdict="good" if parts else "unknown",
        remedy=None if parts else "throttling cannot be seen there: repeat runs, and compare them (calibrate)",
    )  # fmt: skip
    threads = device.runtime.threads
    if threads > facts.cores:
        remedy = f"set runtime.threads to {facts.cores} or less in the record"
        yield Finding(what="threads", found=f"{threads} on {facts.cores} cores", verdict="bad", remedy=remedy)
    big = conditions.big_cores(facts, threads)
    found = "the system chooses: all alike, as far as known" if big is None else f"pinned to {_ranges(list(big))}"
    yield Finding(what="measured on", found=f"{threads} thread{'s' * (threads > 1)}, {found}", verdict="note")


def _libc(device: Device, facts: DeviceFacts) -> Iterator[Finding]:
    """glibc there against what the pinned libraries were linked with."""
    if device.os == "android" or device.runner == "python":
        return
    have = (facts.libc or "").partition("glibc ")[2]
    pins = tomllib.loads((build.HERE / "libraries.toml").read_text(encoding="utf-8"))["library"]
    for pin in pins:
        if pin["target"] != _target(device) or pin["format"] not in device.formats:
            continue
        what, need = f"libc for {pin['format']}", f"{pin['name']} {pin['version']} needs glibc {pin['glibc']}"
        if not have:
            musl = facts.libc in ("musl", "uClibc")
            remedy = "take a system with glibc, or give libraries built for it: edgekit runner build --runtime-lib"
            found = f"{facts.libc or 'unknown'}; {need}"
            yield Finding(what=what, found=found, verdict="bad" if musl else "unknown", remedy=remedy)
        elif [int(part) for part in have.split(".")] < [int(part) for part in pin["glibc"].split(".")]:
            remedy = "give an older library (edgekit runner build --runtime-lib), or upgrade the system there"
            yield Finding(what=what, found=f"{facts.libc}; {need}", verdict="bad", remedy=remedy)
        else:
            yield Finding(what=what, found=f"{facts.libc}; {need}", verdict="good")


def _target(device: Device) -> str | None:
    try:
        return placed.kit_target(device)
    except InputError:
        return None


def _kit(device: Device) -> Finding:
    """The runner on this host, ready to be sent."""
    target = _target(device)
    if device.runner == "python":
        return Finding(what="runner", found="the record asks for the Python runner", verdict="note")
    if target is None:
        found = "there is no native runner for this system"
        return Finding(what="runner", found=found, verdict="bad", remedy="--runner python")
    folder = build.at_hand(target)
    if folder is None and target != "android" and importlib.util.find_spec("ziglang"):
        return Finding(
            what="runner", found=f"no native runner for {target} yet; the first bench makes it", verdict="note"
        )
    if folder is None:
        android = " --ndk NDK --runtime-lib libLiteRt.so"
        remedy = f"edgekit runner build --target {target}" + (android if target == "android" else "")
        return Finding(what="runner", found=f"no native runner for {target} yet", verdict="bad", remedy=remedy)
    kit = build.read(folder)
    libraries = ", ".join(f"{format} {kit.versions.get(format, 'of your own')}" for format in kit.libraries)
    found = f"{target} with {libraries or 'no runtime'}" + (f"; unverified: {kit.unverified}" if kit.unverified else "")
    lacking = [format for format in device.formats if format not in kit.libraries]
    remedy = f"for {', '.join(lacking)}: edgekit runner build --target {target} --runtime-lib FILE" if lacking else None
    verdict = "good" if not lacking else "bad" if len(lacking) == len(device.formats) else "note"
    return Finding(what="runner", found=found, verdict=verdict, remedy=remedy)


def _python(device: Device, transport: Transport) -> Finding:
    """A Python there and the runtimes that it could import; needed only where the record asks for it."""
    program = placed.python(device)
    done = transport.run([program, "-c", _PYTHON], _SECONDS)
    version, *modules = done.stdout.decode(errors="replace").split() or [""]
    runs = [format for format in device.formats if set(_MODULES[format]) & set(modules) and "numpy" in modules]
    needed = device.runner == "python"
    if done.code or not runs:
        found = f"no {program}" if done.code else f"{plain(version)} with {plain(', '.join(modules)) or 'no runtime'}"
        wheels = " or ".join(_WHEELS[format] for format in device.formats)
        remedy = f"install python3 there, and with its pip numpy and {wheels}"
        verdict = "bad" if needed else "note"
        return Finding(what="Python", found=found, verdict=verdict, remedy=remedy if needed else None)
    found = f"{plain(version)} with {plain(', '.join(modules))}"
    return Finding(what="Python", found=found, verdict="good" if needed else "note")


def _governors(reading: Reading, cpus: Sequence[int] | None) -> Finding:
    governors = {core: name for core, name in reading.governors.items() if core in (cpus or [core])}
    clocks = ", ".join(f"{hz / 1e9:.2f}" for hz in reading.clocks_hz.values())
    if not governors:
        return Finding(what="clocks", found="neither clocks nor governors can be read", verdict="unknown")
    found = f"{conditions.by_cores(governors)}; now at {clocks} GHz"
    if set(governors.values()) == {"performance"}:
        return Finding(what="clocks", found=found, verdict="good")
    remedy = "steadier with the governor performance, where you are root"
    return Finding(what="clocks", found=found, verdict="note", remedy=remedy)


def _zones(reading: Reading) -> Finding:
    zones, hottest = reading.temperatures_c, conditions.hottest(reading)
    if hottest is None:
        return Finding(what="temperature", found="no thermal zone can be read", verdict="unknown")
    found = f"{len(zones)} zones; the hottest that counts is {hottest[0]} at {hottest[1]:.1f} °C"
    return Finding(what="temperature", found=found, verdict="good")


def _power(reading: Reading) -> Finding:
    battery = "no battery" if reading.battery_percent is None else f"battery at {reading.battery_percent:g} %"
    plugged = {True: ", on external power", False: ", not on external power", None: ""}[reading.charging]
    load = "" if reading.load is None else f"; {reading.load:.0%} of its cores are busy"
    return Finding(what="power, load", found=battery + plugged + load, verdict="note")


def _energy(device: Device, transport: Transport) -> Iterator[Finding]:
    """Every source, tried once. Only `--energy` needs one, so that none is bad."""
    named = device.meter and device.meter.name
    sources = energy.sources(transport)
    if all(source.state == "absent" for source in sources):
        found, remedy = "no source", 'an instrument at its plug that writes a file here: meter = { name = "trace" }'
        yield Finding(what="energy", found=found, verdict="note", remedy=remedy)
    for source in sources:
        if source.state == "absent" and source.name != named:
            continue
        remedy = {
            "on external power": "unplug it (reach a phone by adb over Wi-Fi)",
            "unusable": "see what it says, or name another meter in the record",
            "absent": "name another meter in the record",
        }.get(source.state)
        found = f"{source.said}: {source.state}"
        verdict = "good" if source.state == "ready" else "note"
        yield Finding(what=f"energy: {source.name}", found=found, verdict=verdict, remedy=remedy)


def _limits(transport: Transport) -> Finding:
    """What `--memory-limit` would limit by."""
    done = transport.run(["sh", "-c", _LIMITS, "edgekit-limits", ""], _SECONDS)
    kind = plain(done.stdout.decode(errors="replace"))
    if kind:
        return Finding(what="memory limit", found=f"{kind}: counts resident memory", verdict="good")
    found = "address space only, which counts what is mapped; no memory cgroup may be made there"
    return Finding(what="memory limit", found=found, verdict="note", remedy="as root, where its kernel has cgroups")


def _ranges(cores: Sequence[int]) -> str:
    """`0-3, 6` for 0, 1, 2, 3, 6."""
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and core == runs[-1][-1] + 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
