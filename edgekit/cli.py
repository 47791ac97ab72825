"""The command line: arguments to one library call, its result to stdout, its end to an exit code. No logic.

Heavy modules are imported inside the commands, so that `edgekit --help` answers at once.
"""

import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edgekit import __version__
from edgekit.errors import EdgekitError

_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
_DEVICE = "A name of `edgekit devices`, adb:SERIAL, ssh:HOST, or a TOML file; repeatable.  [default: host]"
_LISTED = {"name", "title", "source"}
_STOPPED = "edgekit: stopped; run the same command again to go on"


class _Quantity(click.ParamType[float]):
    """A number with a unit, `30MB` or `10m`, in the base unit."""

    def __init__(self, name: str, units: dict[str, float]) -> None:
        self.name = name
        self.units = units

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(value))
        if not match or match[2] not in self.units or not float(match[1]):
            self.fail(f"{value!r} is no {self.name}; write a number and one of {', '.join(filter(None, self.units))}")
        return float(match[1]) * self.units[match[2]]


def _methods(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The names that a shell completes `--method` with."""
    from edgekit import systems

    return [name for name in systems.names() if name.startswith(incomplete)]


_SIZE = _Quantity("size", {"MB": 1e6, "MiB": 2**20, "GB": 1e9, "GiB": 2**30, "kB": 1e3, "B": 1})
_DURATION = _Quantity("time", {"s": 1, "m": 60, "h": 3600})


_BASELINE = click.option(
    "--baseline", required=True, metavar="BUNDLE",
    help="A folder, a zip, or git:REF, which is built by the recipe of that commit.",
)  # fmt: skip
_MEASURING = (
    click.option("--device", "devices", multiple=True, metavar="NAME", help=_DEVICE),
    click.option(
        "--format", "format", type=click.Choice(["onnx", "tflite"]), help="Which models.  [default: the baseline's]"
    ),
    click.option(
        "--length", "lengths", multiple=True, type=click.IntRange(1), help="Tokens; repeatable.  [default: all]"
    ),
    click.option("--no-score", "score", is_flag=True, flag_value=False, default=True, help="Leave out the score."),
    click.option(
        "--base", type=click.Path(path_type=Path), default=Path(), help="Where paths in the recipe's data start."
    ),
    click.option("--energy", is_flag=True, help="Joules per inference, one bundle after the other; 14 minutes."),
    click.option("--runner", type=click.Choice(["native", "python"]), help="What runs the models."),
    click.option("--adb", type=click.Path(path_type=Path, dir_okay=False), help="The adb program to use."),
    click.option("--recipe", type=click.Path(path_type=Path), help="Of git:REF; as `edgekit build RECIPE`."),
    click.option(
        "--store", type=click.Path(path_type=Path), default=Path(".edgekit"), envvar="EDGEKIT_STORE",
        help="Where git:REF's finished stages are kept.",
    ),
)  # fmt: skip


def _side_by_side(command: Callable[..., None]) -> Callable[..., None]:
    """The options of commands that measure two bundles in turns."""
    for option in reversed(_MEASURING):
        command = option(command)
    return command


def _measuring(devices: tuple[str, ...], recipe: Path | None, store: Path, **wanted: Any) -> tuple[Any, ...]:
    """What those options ask for: devices, what of each, and how to build a commit."""
    from edgekit import devices as records
    from edgekit.bench.measure import Wanted

    return [records.find(name) for name in devices or ("host",)], Wanted(**wanted), recipe, store


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="edgekit %(version)s")
def cli() -> None:
    """From a trained transformer to a model that fits and runs on a phone or board."""


@cli.command()
@click.argument("recipe", required=False, type=click.Path(path_type=Path))
@click.option("--target", default="host", show_default=True, help="A target of devices/, or a TOML file of your own.")
@click.option("--out", type=click.Path(path_type=Path), help="The bundle's folder.  [default: bundles/RECIPE-TARGET]")
@click.option(
    "--store", type=click.Path(path_type=Path), default=Path(".edgekit"), envvar="EDGEKIT_STORE", show_default=True,
    help="Where finished stages are kept.",
)  # fmt: skip
@click.option("--until", metavar="STAGE", help="Stop after this stage (teach, distill, prune, export-onnx, ...).")
@click.option("--method", metavar="NAME", shell_complete=_methods, help="Train the student so: see `edgekit methods`.")
@_JSON
def build(
    recipe: Path | None, target: str, out: Path | None, store: Path, until: str | None, method: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Build RECIPE (a TOML file, or one that ships) into a bundle; without it, the embedded default.

    A build that was stopped or killed goes on where it was; an unchanged one does nothing.
    """
    _stop_at_once()  # before anything that starts threads is imported
    from edgekit import compare, progress, tables
    from edgekit import recipe as recipes
    from edgekit.pipeline.build import build as run
    from edgekit.store import Store

    read, base = recipes.find(recipe)
    kept = Store(store)
    read = compare.with_method(read, method, base, kept)
    wanted = recipes.target(target)
    folder = out or Path("bundles", "-".join(filter(None, (read.name, method and Path(method).stem, wanted.name))))
    built = run(read, wanted, kept, folder, base, until, done=lambda row: progress.say(tables.line(row)))
    _print(built.model_dump(mode="json") if as_json else tables.build(built))


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("given", nargs=-1, metavar="TEXT...")
@click.option("--format", "format", type=click.Choice(["onnx", "tflite"]), help="Which of the bundle's models.")
@_JSON
def run(bundle: Path, given: tuple[str, ...], format: Any, as_json: bool) -> None:
    """Answer TEXT, or each line of standard input, with a BUNDLE alone: no torch needed."""
    from edgekit.run import answer, answers

    if given:
        found = answer(bundle, given, format)
        _print(found if as_json else found["text"])
        return
    if sys.stdin.isatty():
        raise click.UsageError("nothing to answer; give a TEXT, or lines on standard input")
    lines = answers(bundle, ([line.strip()] for line in sys.stdin if line.strip()), format)
    if as_json:
        _print(list(lines))
        return
    for found in lines:
        _print(found["text"])


@cli.command()
@click.argument("task", required=False)
@click.option("--out", type=click.Path(path_type=Path), default=Path("recipe.toml"), show_default=True)
@click.option("--method", metavar="NAME", shell_complete=_methods, help="With the steps of this way to train.")
@_JSON
def init(task: str | None, out: Path, method: str | None, as_json: bool) -> None:
    """Write an annotated recipe for TASK to start from; without TASK, say which there are."""
    from edgekit.init import init as write

    written = write(task, out, method)
    _print({"recipe": str(written)} if as_json else f"{written}: edit it, then run: edgekit build {written}")


@cli.command()
@click.argument("name", required=False, shell_complete=_methods)
@_JSON
def methods(name: str | None, as_json: bool) -> None:
    """Every way to train the student, with its source; with NAME, its steps."""
    from edgekit import systems

    if name is not None:
        found = systems.find(name, "methods")
        _print(found.model_dump(mode="json") if as_json else found.text.rstrip())
        return
    every = [systems.find(one) for one in systems.names()]
    _print([one.model_dump(mode="json", include=_LISTED) for one in every] if as_json else systems.lines(every))


@cli.command()
@click.argument("recipe", required=False, type=click.Path(path_type=Path))
@click.option(
    "--method", "methods", multiple=True, metavar="NAME", shell_complete=_methods,
    help="One of `edgekit methods`, or a TOML file; repeatable.  [default: all but supervised]",
)  # fmt: skip
@click.option("--seeds", type=click.IntRange(1, 100), default=3, show_default=True, help="Trainings of each method.")
@click.option(
    "--store", type=click.Path(path_type=Path), default=Path(".edgekit"), envvar="EDGEKIT_STORE", show_default=True,
    help="Where finished stages are kept.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False),
    help="The result, for `edgekit report`.  [default: results/compare-RECIPE.json]",
)  # fmt: skip
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write a page (.html) as well.")
@_JSON
def compare(
    recipe: Path | None, methods: tuple[str, ...], seeds: int, store: Path, out: Path | None, report: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Train the student of RECIPE by several methods under the same budget: which one is best for it?

    Nothing is exported. What is done is kept: stopped, the same command goes on, and a further method or seed costs
    itself alone.
    """
    from edgekit import compare as comparing
    from edgekit import recipe as recipes
    from edgekit.store import Store

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    read, base = recipes.find(recipe)
    keep = comparing.keeper(out or Path("results", f"compare-{read.name}.json"), report)
    found = comparing.compare(read, base, methods, seeds, Store(store), keep)
    _print(found.model_dump(mode="json") if as_json else comparing.lines(found))
    sys.exit(comparing.exit_code(found, bool(methods)))


@cli.command()
@click.argument("model")
@click.option("--length", default=128, show_default=True, help="Sequence length in tokens, for FLOPs and memory.")
@_JSON
def inspect(model: str, length: int, as_json: bool) -> None:
    """What MODEL (a folder, hub name, bundle, .onnx or .tflite) is made of, and what it will weigh."""
    from edgekit.pipeline import inspect as inspector

    found = inspector.inspect(model, length)
    _print(found.model_dump(mode="json") if as_json else inspector.lines(found))


@cli.command()
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--device", "devices", multiple=True, metavar="NAME", help=_DEVICE)
@click.option("--format", "format", type=click.Choice(["onnx", "tflite"]), help="Which of the bundle's models.")
@click.option("--length", "lengths", multiple=True, type=click.IntRange(1), help="Tokens; repeatable.  [default: all]")
@click.option("--seconds", type=click.FloatRange(0, 3600), default=5, show_default=True, help="To time each length.")
@click.option("--score", is_flag=True, help="Score the whole evaluation set of the bundle's recipe on the device.")
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Where paths in the recipe's data start, for --score.",
)
@click.option("--energy", is_flag=True, help="Joules per inference, in windows of a minute; takes 7 minutes.")
@click.option("--sustained", type=_DURATION, metavar="TIME", help="Work so long without a pause: 10m, 90s.")
@click.option("--memory-limit", type=_SIZE, metavar="SIZE", help="Run once more under this real limit: 30MB, 200MB.")
@click.option("--runner", type=click.Choice(["native", "python"]), help="What runs the model.  [default: the record's]")
@click.option("--adb", type=click.Path(path_type=Path, dir_okay=False), help="The adb program to use.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("results"), show_default=True,
    help="A folder for the results, one JSON file a device.",
)  # fmt: skip
@_JSON
def bench(
    bundle: Path | None, devices: tuple[str, ...], out: Path, as_json: bool, sustained: float | None,
    memory_limit: float | None, **wanted: Any,
) -> None:  # fmt: skip
    """Deploy BUNDLE (by default the only one in bundles/) to devices, check that it computes the right thing there,
    and measure latency and memory.
    """
    from edgekit import devices as records
    from edgekit import tables
    from edgekit.bench import bench as benches
    from edgekit.bench.measure import Wanted

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: nothing is left, an unpacked zip neither
    limit = None if memory_limit is None else int(memory_limit)
    asked = Wanted(**wanted, sustained_s=sustained, memory_limit=limit)
    benched = benches.bench(bundle, [records.find(name) for name in devices or ("host",)], asked, out)
    _print(benched.model_dump(mode="json") if as_json else tables.bench(benched, out))
    sys.exit(benches.exit_code(benched))


@cli.command()
@click.argument("candidate", type=click.Path(path_type=Path))
@_BASELINE
@_side_by_side
@click.option("--target", help="Of git:REF; as `edgekit build --target`.  [default: the candidate's]")
@click.option("--accept", is_flag=True, help="Make CANDIDATE the baseline; measures nothing.")
@click.option(
    "--history", metavar="WHERE", envvar="EDGEKIT_HISTORY",
    help="A .jsonl file, an SQLite file or a database's URL that keeps all verdicts.  [default: OUT/history.db]",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("results"), show_default=True,
    help="A folder for the verdict, with all samples.",
)  # fmt: skip
@_JSON
def gate(
    candidate: Path, baseline: str, target: str | None, accept: bool, history: str | None, out: Path, as_json: bool,
    **asked: Any,
) -> None:  # fmt: skip
    """Is CANDIDATE worse than the baseline? Measures both in turns on each device.

    Exit code 0 is PASS, 3 REGRESSION, 5 INCONCLUSIVE, 4 a device that failed (only this one is worth a retry).
    """
    from edgekit import gating, tables
    from edgekit.gate import verdict

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    where = history or str(out / "history.db")
    if accept:
        manifest = gating.accept(candidate, baseline, where)
        accepted = {"baseline": baseline, "bundle": manifest.name, "digest": manifest.digest}
        _print(accepted if as_json else f"{baseline}: is now {candidate}, {manifest.digest[:12]}")
        return
    devices, wanted, recipe, store = _measuring(**asked)
    found = gating.run(candidate, baseline, devices, wanted, out, where, recipe, target, store)
    _print(found.model_dump(mode="json") if as_json else tables.coloured(tables.verdict(found)))
    sys.exit(verdict.exit_code(found))


@cli.command()
@click.argument("candidate")
@_BASELINE
@_side_by_side
@click.option("--target", default="host", show_default=True, help="Of git:REF; as `edgekit build --target`.")
@_JSON
def bisect(candidate: str, baseline: str, target: str, as_json: bool, **asked: Any) -> None:
    """Name the first commit, or the first step of a recipe, that made CANDIDATE worse than the baseline.

    With git:REF for both, the commits between them are built and gated; with two bundles, recipes that take one step
    more from CANDIDATE. Exit code 3: it is named; 0: CANDIDATE passes; 5: it stays open.
    """
    from edgekit import bisect as bisecting
    from edgekit import gating

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    devices, wanted, recipe, store = _measuring(**asked)

    def judge(candidate: Path, baseline: Path) -> Any:
        return gating.gate(candidate, baseline, devices, wanted)

    found = bisecting.bisect(candidate, baseline, judge, recipe, target, store, wanted.base)
    _print(found.model_dump(mode="json") if as_json else bisecting.lines(found))
    sys.exit(found.exit_code)


@cli.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", "-o", "outs", multiple=True, type=click.Path(path_type=Path), default=[Path("report.html")],
    show_default="report.html",
    help="What to write, by its ending: .html a page, .md a comment, .xml JUnit; repeatable.",
)  # fmt: skip
@click.option(
    "--history", metavar="WHERE", envvar="EDGEKIT_HISTORY", help="As `edgekit gate --history`: adds trends to the page."
)
@_JSON
def report(results: tuple[Path, ...], outs: tuple[Path, ...], history: str | None, as_json: bool) -> None:
    """Show RESULTS (files that bench, gate and compare wrote, and bundles) as a page that needs no network."""
    from edgekit.gate import report as reports

    reports.write(reports.read(results, history), outs)
    _print({"written": [str(out) for out in outs]} if as_json else "\n".join(f"{out}: written" for out in outs))


@cli.group(invoke_without_command=True)
@_JSON
@click.pass_context
def devices(context: click.Context, as_json: bool) -> None:
    """Every known device, its state, and what is missing to use it."""
    if context.invoked_subcommand:
        return
    from edgekit import tables
    from edgekit.bench import doctor

    states = doctor.states()
    _print([state.model_dump(mode="json") for state in states] if as_json else tables.devices(states))


@devices.command("doctor")
@click.argument("name")
@_JSON
def devices_doctor(name: str, as_json: bool) -> None:
    """Look at all that a measurement on device NAME rests on, each with a verdict and a remedy."""
    from edgekit import devices as records
    from edgekit import tables
    from edgekit.bench import doctor

    found = doctor.doctor(records.find(name, "doctor"))
    _print(found.model_dump(mode="json") if as_json else tables.doctor(found))
    sys.exit(0 if found.good else 4)


@devices.command("calibrate")
@click.argument("name")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--pairs", type=click.IntRange(3, 100), default=15, show_default=True, help="A/A pairs of processes.")
@_JSON
def devices_calibrate(name: str, bundle: Path | None, pairs: int, as_json: bool) -> None:
    """Measure the same bundle again and again on device NAME: its own noise, and the least change it can resolve."""
    from edgekit import devices as records
    from edgekit import tables
    from edgekit.bench import calibrate

    found = calibrate.calibrate(records.find(name, "calibrate"), bundle, pairs)
    _print(found.model_dump(mode="json") if as_json else tables.calibration(found, calibrate.path(found.device)))


@devices.command("clean")
@click.argument("name")
@_JSON
def devices_clean(name: str, as_json: bool) -> None:
    """Remove what edgekit keeps on device NAME between measurements: uploaded models and libraries."""
    from edgekit import devices as records
    from edgekit.bench import deploy, placed

    link, workdir = placed.connect(records.find(name, "clean"))
    with link as transport:
        deploy.clean(transport, workdir)
    _print({"device": name, "removed": workdir} if as_json else f"{name}: {workdir} is gone")


@cli.group()
def runner() -> None:
    """The small program that runs models on devices."""


@runner.command("build")
@click.option("--target", required=True, type=click.Choice(["linux-arm64", "linux-armv7", "linux-x86_64", "android"]))
@click.option("--ndk", type=click.Path(path_type=Path), help="Android's NDK, to compile for Android.")
@click.option(
    "--sysroot", type=click.Path(path_type=Path), help="An arm64 glibc to take along to Android, without NDK."
)
@click.option(
    "--runtime-lib", "libraries", multiple=True, type=click.Path(path_type=Path),
    help="Your own libonnxruntime or LiteRT library; repeatable.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="A folder to put it in.  [default: edgekit's cache]")
@_JSON
def runner_build(
    target: str, ndk: Path | None, sysroot: Path | None, libraries: tuple[Path, ...], out: Path | None, as_json: bool
) -> None:
    """Compile the runner for a kind of device and put the runtimes' libraries beside it."""
    from edgekit.bench.runner import build as builder

    folder = builder.build(target, out, ndk, libraries, sysroot)
    kit = {"folder": str(folder), **builder.read(folder).model_dump(mode="json")}
    _print(kit if as_json else builder.describe(folder))


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@_JSON
def verify(bundle: Path, as_json: bool) -> None:
    """Check every file of BUNDLE (a folder or zip) against its manifest."""
    from edgekit.bundle import verify as check

    manifest = check(bundle)
    _print(manifest.model_dump(mode="json") if as_json else f"{bundle}: good, {len(manifest.files)} files")


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL; bash: eval "$(edgekit completion bash)"."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:  # click.Choice allows only shells that click knows
        raise click.UsageError(f"no completion for {shell}")
    click.echo(found(cli, {}, "edgekit", "_EDGEKIT_COMPLETE").source())


def _stop_at_once() -> None:
    """From here on Ctrl-C ends the process within a blink, whatever native code is running just then.

    Python's own handler waits for that code to return, which a converter may not do for ten seconds. Nothing has to
    be put away: the store is safe against kills at any moment.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    stderr = os.dup(2)  # a converter's own output is silenced by pointing 2 elsewhere

    def wait() -> None:
        signal.sigwait({signal.SIGINT})
        show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
        os.write(stderr, f"{show_cursor}\n{_STOPPED}\n".encode())
        os._exit(130)

    threading.Thread(target=wait, daemon=True).start()


def _print(result: Any) -> None:
    """The result, and nothing else, on stdout."""
    click.echo(result if isinstance(result, str) else json.dumps(result, indent=1, ensure_ascii=False))


def main() -> None:
    """The entry point of the `edgekit` command."""
    if "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:  # started by torchrun or accelerate
        from edgekit.pipeline import processes

        processes.run(_main)
    else:
        _main()


def _main() -> None:
    try:
        cli.main(prog_name="edgekit", standalone_mode=False)
    except EdgekitError as error:
        click.echo(f"edgekit: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo(_STOPPED, err=True)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)
