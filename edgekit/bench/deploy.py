"""A private work folder on a device for the time of one bench, and a cache of what is uploaded there.

    WORKDIR/.edgekit      says that edgekit made WORKDIR: where it is missing, nothing there is touched
    WORKDIR/lock          a link to "PID WHO": the keeper that lives there now
    WORKDIR/cache/SHA256  uploads; an unchanged file is not sent again, one not used for 30 days is removed
    WORKDIR/run/          one bench's files, links into the cache among them

The keeper is a small script on the device that makes `run/` and removes it when its standard input ends: after the
bench, at Ctrl-C, when this process is killed, and when the cable is pulled. What a dead one left, the next sweeps.
"""

import os
import platform
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgekit.bench.transports import SHA256, Transport, digest_of, remedy
from edgekit.errors import DeviceError, InputError
from edgekit.progress import bar

_MARK = "edgekit-keeper"

# What both scripts begin with: $1 is WORKDIR. A PID may be another's by now, so the keeper's is known by its name.
_HOUSE = r"""
umask 077; export LC_ALL=C
case $1 in "~") top=$HOME ;; "~/"*) top=$HOME/${1#"~/"} ;; *) top=$1 ;; esac
alive() {
    if [ -e "/proc/$$" ]; then grep -q edgekit-keeper "/proc/$1/cmdline" 2>/dev/null; else kill -0 "$1" 2>/dev/null; fi
}
"""
# Of several that find a dead keeper's lock, one at a time may look again and remove it; `sweep` is theirs for a moment.
# A file that is no program tells whether programs may be run: without that right it is refused before it is looked at.
_KEEPER = rf"""{_HOUSE}
who=$2
fail() {{ state=$1; set -f; set -- $2; printf '%s\n' "$state $*"; exit 1; }}
if ! [ -e "$top/.edgekit" ]; then
    said=$(mkdir -p "$top" 2>&1) || fail failed "$said"
    if [ -e "$top/run" ] || [ -e "$top/cache" ]; then [ -e "$top/.edgekit" ] || fail foreign "$top"; fi
    said=$({{ : >"$top/.edgekit"; }} 2>&1) || fail failed "$said"
fi
if there=$(readlink "$top/lock"); then
    ! alive "${{there%% *}}" || fail busy "$there"
    mkdir "$top/sweep" 2>/dev/null || {{
        find "$top/sweep" -prune -mmin +1 -exec rmdir {{}} + 2>/dev/null
        fail busy "just starting"
    }}
    [ "$(readlink "$top/lock")" != "$there" ] || rm -f "$top/lock"
    rmdir "$top/sweep"
fi
trap 'exit 0' TERM INT HUP
trap '' PIPE
said=$(ln -s "$$ $who" "$top/lock" 2>&1) || {{
    there=$(readlink "$top/lock") && fail busy "$there"
    fail failed "$said"
}}
trap 'rm -rf "$top/run" || {{ sleep 1; rm -rf "$top/run"; }}; rm -f "$top/lock"' EXIT
said=$({{ rm -rf "$top/run" && mkdir -p "$top/cache" && mkdir -m 700 "$top/run"; }} 2>&1) || fail failed "$said"
said=$({{ echo exit 0 >"$top/run/program" && chmod 700 "$top/run/program"; }} 2>&1) || fail failed "$said"
said=$("$top/run/program" 2>&1) || fail noexec "$said"
rm -f "$top/run/program" "$top"/cache/*.part
find "$top/cache" -type f -mtime +30 -exec rm -f {{}} + 2>/dev/null
printf 'ready %s\n' "$HOME"
while :; do sleep 3600 & wait "$!"; done
"""
_PLACE = rf"""{SHA256}
umask 077; export LC_ALL=C
cache=$1 run=$2; shift 2
while [ $# -gt 0 ]; do
    case $2 in */*) mkdir -p "$run/${{2%/*}}" || exit ;; esac
    ln -sf "$cache/$1" "$run/$2" || exit
    if [ -f "$cache/$1" ]; then touch "$cache/$1" && sha256 "$cache/$1" || exit; fi
    shift 2
done
"""
_CLEAN = rf"""{_HOUSE}
[ -e "$top/.edgekit" ] || exit 0
if there=$(readlink "$top/lock"); then
    keeper=${{there%% *}}
    ! alive "$keeper" || kill "$keeper"
    for second in 1 2 3; do ! alive "$keeper" || sleep 1; done
fi
rm -rf "$top/run" "$top/cache" "$top/lock" "$top/sweep" && rm -f "$top/.edgekit" && {{ rmdir "$top" 2>/dev/null || :; }}
"""
_STEP_S = 30.0
"""For what only names and counts files, on a busy board over a slow link."""
_SLOWEST = 200_000
"""Bytes a second below which a link is called hung."""


@dataclass(frozen=True)
class Place:
    """The work folder of one bench on a device."""

    transport: Transport
    folder: str
    """Its absolute path there: empty at first, mode 700."""
    cache: str

    def put(self, files: Mapping[str, Path]) -> None:
        """Have these local files in the folder, by their names there (`lib/x.so` makes `lib/`), executable.

        They are links into the cache, to which only what is not there yet is sent; all are verified by sha256 on the
        device.
        """
        for name in files:
            if name != str(PurePosixPath(name)) or PurePosixPath(name).is_absolute() or ".." in name.split("/"):
                raise InputError(f"{name!r} names no file inside a work folder; give it another name")
        digests = {name: digest_of(path) for name, path in files.items()}
        words = [word for name, digest in digests.items() for word in (digest, name)]
        argv = ["sh", "-c", _PLACE, "edgekit-place", self.cache, self.folder, *words]
        done = self.transport.run(argv, self._seconds(files.values()))
        if done.code:
            what = f"{self.transport.name}: cannot place files in {self.folder}"
            raise DeviceError(f"{what}: {done.last_words()}{remedy(done.stderr)}")
        there = {line.split()[0] for line in done.stdout.decode(errors="replace").splitlines() if line.strip()}
        missing = {digest: files[name] for name, digest in digests.items() if digest not in there}
        sizes = {digest: path.stat().st_size for digest, path in missing.items()}
        if missing:
            with bar(f"sending to {self.transport.name}", sum(sizes.values())) as show:
                before = 0
                for digest, path in missing.items():
                    start = before
                    self.transport.push(
                        path,
                        f"{self.cache}/{digest}",
                        self._seconds([path]),
                        lambda sent, start=start: show(start + sent),
                    )
                    before += sizes[digest]

    def send(self, local: Path, remote: str) -> None:
        """Copy a local file that is used once to the absolute path `remote` in the folder."""
        self.transport.push(local, remote, self._seconds([local]))

    def get(self, remote: str, local: Path) -> None:
        """Copy the file at the absolute path `remote` in the folder to `local`."""
        self.transport.pull(remote, local, 10 * _STEP_S)

    def _seconds(self, files: Iterable[Path]) -> float:
        """How long moving or reading them may take."""
        return _STEP_S + sum(path.stat().st_size for path in files) / _SLOWEST


@contextmanager
def opened(transport: Transport, workdir: str) -> Generator[Place]:
    """A `Place` below `workdir`, an absolute path or `~/...`; its folder is gone afterwards, whatever happens.

    Raises `DeviceError` where that cannot be: another edgekit is there, it is read-only, full, or runs no programs.
    """
    _check(workdir)
    who = f"of {platform.node()}, process {os.getpid()}"
    what = f"{transport.name}: work folder {workdir!r}"
    with transport.hold(["sh", "-c", _KEEPER, _MARK, workdir, who], _STEP_S) as line:
        state, _, said = line.partition(" ")
        if state != "ready":
            raise DeviceError(f"{what}: {_refusal(state, said)}")
        home = said
        top = home if workdir == "~" else f"{home}/{workdir[2:]}" if workdir.startswith("~/") else workdir
        yield Place(transport, f"{top}/run", f"{top}/cache")


def clean(transport: Transport, workdir: str) -> None:
    """Remove all that edgekit has in `workdir`, and what runs there; nothing if it never was there."""
    _check(workdir)
    done = transport.run(["sh", "-c", _CLEAN, "edgekit-clean", workdir], 10 * _STEP_S)
    if done.code:
        raise DeviceError(f"{transport.name}: cannot clean {workdir!r}: {done.last_words()}{remedy(done.stderr)}")


def _check(workdir: str) -> None:
    if not (workdir.startswith(("/", "~/")) or workdir == "~") or "\0" in workdir:
        raise InputError(f"workdir {workdir!r}: must be an absolute path or begin with ~/")


def _refusal(state: str, said: str) -> str:
    """Why the keeper did not begin, and what to do."""
    if state == "busy":
        return f"another edgekit works there: keeper {said}; wait for it, or if it is dead: edgekit devices clean NAME"
    if state == "foreign":
        return "it holds a folder run or cache that is not edgekit's; name another one: workdir"
    if state == "noexec":
        return (
            f"programs cannot be started there ({said.strip()}); name a work folder on a disk without noexec: workdir"
        )
    return f"cannot be made: {said.strip()}{remedy(said.encode()) or '; name another one: workdir'}"
