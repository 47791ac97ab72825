"""Several processes, one build: what `torchrun --nproc-per-node 2 -m edgekit build RECIPE` starts.

    process 0    runs the command as it would alone: it plans, holds the store's locks, writes and prints
    the others   run no command; each waits for process 0 to name a stage that trains, runs that stage along with it
                 in a throw-away folder, and waits again

So only the training knows of several processes: a batch is cut into slices, one a process, and the gradients are
averaged (`training`). Nothing waits without end: who waits looks at a small key-value store that all share, where
process 0 says what comes next and, last of all, that it has ended and with which exit code.

The processes of several machines need the recipe's data and teacher at the same paths, and the build's store on a
disk that they share.
"""

import atexit
import contextlib
import importlib
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgekit import progress
from edgekit.errors import DeviceError, EdgekitError, InputError

if TYPE_CHECKING:
    from edgekit.pipeline import Made, Planned, TaskData
    from edgekit.records import Target

T = TypeVar("T")

PATIENCE_S = 5.0
"""How long a process that fails waits for word from the others, so that one of them speaks and not all."""


class _Line:
    """The key-value store between the processes, and how far this process has come in it."""

    def __init__(self) -> None:
        self.store: Any = None  # before `run`
        self.orders = 0
        self.agreed: int | None = None  # counts within an order; None outside of one

    def said(self, key: str) -> str | None:
        return self.store.get(key).decode() if self.store.check([key]) else None


_line = _Line()


def rank() -> int:
    """The number of this process, 0 where it is the only one."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def count() -> int:
    """How many processes the launcher started, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def run(command: Callable[[], None]) -> None:
    """Run `command` in process 0 with the others at its service; ends the process with the command's exit code."""
    # First of all: threads that a library starts take a signal unless it was blocked before.
    desk = Path(tempfile.mkdtemp(prefix="edgekit-")) if rank() else None
    if desk:
        atexit.register(shutil.rmtree, desk, ignore_errors=True)
        _watch_launcher(desk)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # it warns of every choice that a training makes on purpose
    import torch.distributed as dist

    _line.store = _connect()
    if desk:
        sys.exit(_serve(_line, desk))
    _watch_launcher(None)
    code = 1
    try:
        command()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        raise
    except RuntimeError as error:  # torch's, where another process left in the middle of a training
        if not _is_lost(error):
            raise
        if (found := _wait("failed")) is None:
            found = str(DeviceError.exit_code)
            _complain("another process was lost in the middle of a training; run the same command again to go on")
        code = int(found)
        sys.exit(code)
    finally:
        with contextlib.suppress(RuntimeError):  # the launcher, who may hold the store, may be gone
            _line.store.set("end", str(code))
            _until(lambda: _line.store.add("left", 0) >= count() - 1)  # or this process holds it
        if code == 0:
            dist.destroy_process_group()


def agree(make: Callable[[], T]) -> T:
    """What process 0 makes, a JSON value, in every process that is at the same stage; `make()` in a process alone."""
    if _line.agreed is None:
        return make()
    number = _line.agreed
    key = f"agreed/{_line.orders}/{number}"
    if rank():
        made = json.loads(_await(_line, key))
    else:
        _line.agreed = None  # what `make` calls is process 0's own affair
        made = make()
        _line.store.set(key, json.dumps(made))
    _line.agreed = number + 1
    return made


@contextlib.contextmanager
def together(
    planned: "Planned", id: str, target: "Target", data: "TaskData", made: Mapping[str, "Made"]
) -> Generator[None]:
    """In the block process 0 runs the stage of `planned`, which will be the artifact `id`, and so do the others."""
    if count() == 1 or rank():
        yield
        return
    if _line.store is None:
        raise InputError(
            "only `torchrun -m edgekit build` (or `processes.run`) works on several processes; start this without"
        )
    order = {
        "recipe": data.recipe.model_dump(mode="json"),
        "target": target.model_dump(mode="json"),
        "base": str(data.base.absolute()),
        "shared": str(data.shared.absolute()) if data.shared else None,
        "name": planned.name,
        "id": id,
        "made": {n: (m.artifact.model_dump(mode="json"), str(m.folder.absolute())) for n, m in made.items()},
    }
    _line.orders += 1
    _line.agreed = 0
    _line.store.set(f"order/{_line.orders}", json.dumps(order))
    try:
        yield
    finally:
        _line.agreed = None


def _connect() -> Any:
    """Join the others; gives the key-value store that the launcher holds."""
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, number, world = next(rendezvous("env://"))
    cuda = torch.cuda.is_available()
    if cuda:
        local = os.environ.setdefault("LOCAL_RANK", str(number))  # accelerate asks for it, too
        torch.cuda.set_device(int(local) % torch.cuda.device_count())
    shared = PrefixStore("torch", store)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", store=shared, rank=number, world_size=world)
    return PrefixStore("edgekit", store)


def _serve(line: _Line, desk: Path) -> int:
    """Run the stages that process 0 names until it ends, in the folder `desk`; gives the exit code."""
    code = 1
    try:
        while True:
            line.orders += 1
            line.agreed = None
            order = json.loads(_await(line, f"order/{line.orders}"))
            line.agreed = 0
            with progress.quiet():
                _follow(order, desk)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except EdgekitError as error:
        code = error.exit_code
        if (ended := _wait("end")) is not None:  # it met the same error, as a rule, and has said so
            return int(ended)
        _complain(f"process {rank()} on {platform.node()}: {error}")
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        code = int(_wait("end") or DeviceError.exit_code)
    finally:
        with contextlib.suppress(RuntimeError):
            if code:
                line.store.set("failed", str(code))
            line.store.add("left", 1)
    return code


def _follow(order: Mapping[str, Any], desk: Path) -> None:
    """Run the stage that process 0 runs, on the same artifacts, with folders of its own."""
    from edgekit.pipeline import Made, TaskData
    from edgekit.recipe import Recipe
    from edgekit.records import Artifact, Target

    # Named so, it is no part of the source that stands behind every artifact (`store.sources`).
    build = importlib.import_module("edgekit.pipeline.build")
    recipe, target = Recipe.model_validate(order["recipe"]), Target.model_validate(order["target"])
    base, shared = Path(order["base"]), Path(order["shared"]) if order["shared"] else None
    made = {name: Made(Artifact.model_validate(a), Path(folder)) for name, (a, folder) in order["made"].items()}
    for name, each in made.items():
        if not each.folder.is_dir():
            raise InputError(f"cannot see {each.folder} ({name}), which process 0 made; share --store between machines")
    planned = build.plan(recipe, target)
    step = next(p for p in planned if p.name == order["name"])
    ids, _ = build.keys(recipe, target, base, planned)
    if ids[step.name] != order["id"]:
        raise InputError(f"{step.name}: the data, code or libraries here are not those of process 0; make them equal")
    out, scratch = desk / "out", desk / "scratch"
    for folder in (out, scratch):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    build.run_stage(step, order["id"], recipe, target, TaskData(recipe, base, shared), made, out, scratch)


def _await(line: _Line, key: str) -> str:
    """What process 0 says under `key`; ends this process where it has ended instead."""
    while (found := line.said(key)) is None:
        if (ended := line.said("end")) is not None:
            raise SystemExit(int(ended))
        time.sleep(0.05)
    return found


def _wait(key: str) -> str | None:
    """What another process says under `key` within `PATIENCE_S`."""
    try:
        _until(lambda: _line.said(key) is not None)
        return _line.said(key)
    except RuntimeError:  # who holds the store is gone
        return None


def _until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not done() and time.monotonic() < end:
        time.sleep(0.05)


def _is_lost(error: RuntimeError) -> bool:
    """Whether torch says that it cannot reach another process; Gloo has no type of its own for it."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def _complain(line: str) -> None:
    print(f"edgekit: {line}", file=sys.stderr, flush=True)


def _watch_launcher(desk: Path | None) -> None:
    """From here on this process ends with its launcher, whatever native code it is in; one with a `desk` ends at a
    signal too, and takes it along."""
    launcher = os.getppid()
    stop = {signal.SIGINT, signal.SIGTERM} if desk else set[signal.Signals]()
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    launched = "TORCHELASTIC_RUN_ID" in os.environ  # else the parent is a shell, which may leave

    def look() -> None:
        while not (signal.sigpending() & stop or (launched and os.getppid() != launcher)):
            time.sleep(0.1)
        if desk:
            shutil.rmtree(desk, ignore_errors=True)
        os._exit(143)

    threading.Thread(target=look, daemon=True).start()
