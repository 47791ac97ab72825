"""Device records: TOML files that say what a device is, and how to reach it.

    # my-pi.toml
    base = "rpi-5"                                  # everything else is as in that record
    link = { name = "ssh", host = "pi@192.168.1.7" }

A name is looked up in `devices/` beside the working folder, in the user's own folder
(`$XDG_CONFIG_HOME/edgekit/devices`), then among those that ship. A path ending in `.toml` is read as it is.
`adb:SERIAL` and `ssh:HOST` need no file: they are the `android` and `linux-arm64` records with that link.
"""

import os
import tomllib
from pathlib import Path
from typing import Any

from edgekit.errors import InputError, nearest
from edgekit.records import Device, parse

_DIRECT = {"adb": ("android", "serial"), "ssh": ("linux-arm64", "host")}
"""`adb:SERIAL` and `ssh:HOST`: the record that they start from, and the link's parameter."""


def find(name: str, option: str = "--device") -> Device:
    """The device called `name`. Raises `InputError` naming `option`, the nearest known name, or what is wrong in the
    file and where."""
    link, colon, address = name.partition(":")
    if colon and address and link in _DIRECT:
        base, key = _DIRECT[link]
        values = _resolved(known()[base], ())
        return parse(Device, {**values, "name": name, "link": {"name": link, key: address}}, f"{option} {name}")
    records = known()
    path = Path(name) if name.endswith(".toml") else records.get(name)
    if path and not _is_file(path):
        raise InputError(f"{option}: there is no file {path}; name a TOML file, or one of `edgekit devices`")
    if path is None:
        raise InputError(f'{option}: no device is called "{name}"; {nearest(name, records)}')
    found = parse(Device, {"name": path.stem, **_resolved(path, ())}, path)
    if list(found.lengths) != sorted(set(found.lengths)):
        raise InputError(f'{path}: key "lengths" must ascend without repeats, found {list(found.lengths)}')
    return found


def known() -> dict[str, Path]:
    """Every record that has a name, in order of names; the user's own stand before those that ship."""
    return _records(())


def _records(but: tuple[Path, ...]) -> dict[str, Path]:
    """Records by name without the files `but`, so that the user's `android` can have the shipped one as its base."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    folders = (_shipped(), config / "edgekit" / "devices", Path("devices"))
    paths = [path for folder in folders for path in sorted(folder.glob("*.toml")) if path.resolve() not in but]
    return dict(sorted({path.stem: path for path in paths}.items()))


def _resolved(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """The file's values over those of its `base`; tables are replaced whole, but for `preconditions` and `runtime`."""
    values = toml(path)
    base = values.pop("base", None)
    if base is None:
        return values
    above = (*above, path.resolve())
    found = _records(above).get(base) if isinstance(base, str) else None
    if found is None:
        why = "the records name each other in a circle" if base in list(known()) else f'no device is called "{base}"'
        raise InputError(f'{path}: key "base": {why}; {nearest(str(base), _records(above))}')
    inherited = _resolved(found, above)
    merged = {
        key: {**inherited[key], **value}
        for key, value in values.items()
        if key in ("preconditions", "runtime") and isinstance(value, dict) and isinstance(inherited.get(key), dict)
    }
    return {**inherited, **values, **merged}


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, or below a folder that may not be read
        return False


def _shipped() -> Path:
    """`devices/`, beside the package in a checkout and inside it in an installed wheel."""
    inside = Path(__file__).parent / "devices"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "devices"


def toml(path: Path) -> dict[str, Any]:
    """A TOML file's values; what is wrong with it is one `InputError`."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; `edgekit init` writes an annotated recipe") from None
    except (IsADirectoryError, PermissionError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a TOML file: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: is not valid TOML: {error}") from None
