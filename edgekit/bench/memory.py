"""Memory: a pass of its own, and a run under a real limit.

Where a peak stands in time matters as much as its height: most runtimes need the most at load or first run, when the
weights stand in memory twice, not in steady state. So each phase is kept, and the runtime's own floor beside it.
"""

from collections.abc import Sequence

from edgekit.bench.runner import Run, parse
from edgekit.bench.transports import Transport
from edgekit.errors import DeviceError
from edgekit.results import Memory, MemoryLimit

LIMITED = """\
limit=$1 root=$2 kilobytes=$(($1 / 1024)); shift 2
group=edgekit-$$ kind='' dir=''
if [ -e "$root/cgroup.controllers" ]; then
    echo +memory >"$root/cgroup.subtree_control"
    if mkdir "$root/$group" && echo "$limit" >"$root/$group/memory.max"; then
        kind=cgroup-v2 dir=$root/$group
        echo 0 >"$dir/memory.swap.max"
    fi
elif mkdir "$root/memory/$group" && echo "$limit" >"$root/memory/$group/memory.limit_in_bytes"; then
    kind=cgroup-v1 dir=$root/memory/$group
    echo "$limit" >"$dir/memory.memsw.limit_in_bytes"
fi 2>/dev/null
[ "$kind" ] || rmdir "$root/$group" "$root/memory/$group" 2>/dev/null # made, but took no limit
end() { [ -z "$dir" ] || while [ -d "$dir" ] && ! rmdir "$dir" 2>/dev/null; do sleep 0.1; done; }
trap 'kill -KILL $run; wait $run; end; exit 143' TERM
(
    if [ "$kind" ]; then
        sh -c 'echo $PPID' >"$dir/cgroup.procs" || exit 125
    else
        ulimit -v "$kilobytes" || exit 125
    fi
    exec "$@"
) & run=$!
wait "$run"; code=$?
killed=0
for file in "$dir/memory.events" "$dir/memory.oom_control"; do
    [ -e "$file" ] && while read -r key value; do
        [ "$key" = oom_kill ] && killed=$value
    done <"$file"
done
end
printf 'edgekit-limit %s %s\\n' "${kind:-address-space}" "$killed" >&2
exit "$code"
"""
"""Runs a command under a memory limit: `$1` bytes, `$2` where cgroups are mounted, then the command. Only the command
is put into the group. Says on stderr which kind of limit it was and how often the kernel killed."""


def memory(run: Run, floor: Run | None, python: Run | None) -> Memory:
    """A run's phases as a `Memory`; `floor` is the same runner with an empty model."""
    peak = run.phase("end").hwm_bytes
    reached = next(phase.name for phase in run.phases if phase.hwm_bytes == peak)
    least = floor.phase("end").hwm_bytes if floor else None
    return Memory(
        peak_rss_bytes=peak,
        peak_phase=reached,
        floor_bytes=least,
        model_bytes=None if least is None else peak - least,
        python_peak_rss_bytes=python.phase("end").hwm_bytes if python else None,
        phases=run.phases,
    )


def limited(
    transport: Transport, argv: Sequence[str], limit_bytes: int, deadline_s: float, cgroups: str = "/sys/fs/cgroup"
) -> MemoryLimit:
    """Run the runner's `argv` under a limit: a memory cgroup where the target grants one (v2 or v1; swap counts too
    where its kernel counts it), else an address-space limit, which counts what is mapped and not only what is resident.
    """
    done = transport.run(["sh", "-c", LIMITED, "edgekit", str(limit_bytes), cgroups, *argv], deadline_s)
    *said, last = done.stderr.decode(errors="replace").strip().splitlines() or [""]
    mark, _, rest = last.partition(" ")
    kind, _, killed = rest.partition(" ")
    if mark != "edgekit-limit" or kind not in ("cgroup-v1", "cgroup-v2", "address-space"):
        raise DeviceError(f"{transport.name}: setting a memory limit of {limit_bytes} bytes: {done.last_words()}")
    if done.code == 125:
        raise DeviceError(f"{transport.name}: a {kind} limit of {limit_bytes} bytes was refused: {done.last_words()}")
    if done.code == 0:
        parse(done.stdout, transport.name)
        why = ""
    elif killed != "0":
        why = "the kernel killed it at the limit"
    else:
        why = _words(done.stdout) or " / ".join(said[-3:]) or f"it ended with code {done.code}"
    return MemoryLimit(limit_bytes=limit_bytes, kind=kind, survived=done.code == 0, said=why)


def _words(stdout: bytes) -> str:
    """What the runner itself says of a failure."""
    if not stdout.strip():
        return ""
    try:
        parse(stdout, "under the limit")
    except DeviceError as error:
        return str(error)
    return ""
