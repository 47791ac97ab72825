"""The house as tests: who may import what, read from the source; what every plugin, file and docstring owes."""

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from pydantic import BaseModel

from edgekit import plugins

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "edgekit"
SOURCES = sorted(PACKAGE.rglob("*.py"))
WINGS = ("edgekit.pipeline", "edgekit.bench", "edgekit.gate")

TORCH = {"torch", "transformers", "accelerate", "safetensors", "litert_torch", "torchao"}
HEAVY = TORCH | {
    "onnx", "onnxruntime", "onnxscript", "ai_edge_litert", "ai_edge_quantizer", "tokenizers", "datasets",
    "pandas", "pyarrow", "scipy", "seqeval", "sklearn", "jax", "tensorflow", "PIL", "matplotlib", "jinja2",
    "sqlalchemy", "ruptures",
}  # fmt: skip
NETWORK = {
    "socket", "socketserver", "ssl", "asyncio", "http", "urllib.request", "ftplib", "smtplib", "xmlrpc", "requests",
    "httpx", "httpx2", "urllib3", "aiohttp", "paramiko", "asyncssh", "fabric", "adbutils", "adb_shell",
}  # fmt: skip
REMOTE_COMMANDS = {"adb", "ssh", "scp", "sftp", "rsync", "telnet", "curl", "wget"}


class Import(NamedTuple):
    name: str
    where: str
    lazy: bool


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[Import]:
    """Every import in a file, those inside functions too; `from a import b` gives `a.b`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module_of(path).split(".")[: None if path.name == "__init__.py" else -1]
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{start}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("import_module", "__import__"):
                names = [str(node.args[0].value)]
        yield from (Import(n, f"{path.relative_to(ROOT)}:{node.lineno}", node in lazy) for n in names)


def inside(name: str, packages: set[str] | tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def offenders(paths: list[Path], forbidden: set[str] | tuple[str, ...]) -> list[str]:
    return [f"{i.where} imports {i.name}" for path in paths for i in imports(path) if inside(i.name, forbidden)]


def below(*folders: str) -> list[Path]:
    return [path for path in SOURCES if any(path.is_relative_to(PACKAGE / folder) for folder in folders)]


def test_the_reader_of_imports_sees_all_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "edgekit" / "bench" / "x.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import torch.nn\nfrom . import deploy\nfrom ..gate.stats import t\n"
        "def f():\n    from torch import nn\n    importlib.import_module('jax')\n"
    )
    found = {(i.name, i.lazy) for i in imports(path)}
    assert found == {
        ("torch.nn", False),
        ("edgekit.bench.deploy", False),
        ("edgekit.gate.stats.t", False),
        ("torch.nn", True),
        ("jax", True),
    }


def test_only_the_pipeline_imports_torch() -> None:
    assert not offenders([path for path in SOURCES if path not in below("pipeline")], TORCH)


def test_the_ground_floor_knows_no_wing() -> None:
    """`cli.py` imports the wings lazily; what else stands above them is imported by it alone, and lazily."""
    above = {PACKAGE / name for name in ("cli.py", "gating.py", "bisect.py", "compare.py", "search.py")}
    ground = [path for path in SOURCES if path not in below("pipeline", "bench", "gate") and path not in above]
    assert not offenders(ground, WINGS)
    uppers = ("edgekit.gating", "edgekit.bisect", "edgekit.compare", "edgekit.search")
    assert not [i for i in imports(PACKAGE / "cli.py") if inside(i.name, (*WINGS, *uppers)) and not i.lazy]
    assert not offenders([path for path in SOURCES if path not in above], uppers)


def test_what_runs_without_torch_knows_no_pipeline() -> None:
    assert not offenders(below("gate"), ("edgekit.bench", "edgekit.pipeline"))
    assert not offenders(below("bench"), ("edgekit.pipeline",))


def test_only_transports_reach_another_machine() -> None:
    others = [path for path in SOURCES if path not in below("bench/transports")]
    assert not offenders(others, NETWORK)
    starts = [*below("bench", "pipeline"), PACKAGE / "commits.py"]  # compilers, and git
    assert not offenders([path for path in others if path not in starts], {"subprocess"})
    lists = [
        (path, node.elts[0])
        for path in others
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.List) and len(node.elts) > 1
    ]
    commands = [
        f"{path.relative_to(ROOT)}:{first.lineno} starts {first.value}"
        for path, first in lists
        if isinstance(first, ast.Constant) and first.value in REMOTE_COMMANDS
    ]
    assert not commands


@pytest.mark.parametrize(
    "code",
    [
        "import edgekit",
        "import edgekit.cli",
        "import sys, edgekit.cli\nsys.argv[1:] = ['--help']\n"
        "try: edgekit.cli.main()\nexcept SystemExit as e: assert not e.code",
    ],
    ids=["edgekit", "edgekit.cli", "edgekit --help"],
)
def test_start_up_imports_nothing_heavy(code: str) -> None:
    """What takes seconds or may not be installed is imported where it is used."""
    report = "\nimport sys; print('|', *{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stdout.rpartition("|")[2].split())


def public(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """The module, its public functions and classes, and their public methods."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    where = str(path.relative_to(ROOT))
    yield where, tree
    todo: list[tuple[str, ast.AST]] = [(where, tree)]
    while todo:
        name, parent = todo.pop()
        for node in getattr(parent, "body", []):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name[0] != "_":
                overrides = any(getattr(decorator, "id", "") == "override" for decorator in node.decorator_list)
                if not overrides:
                    yield f"{name}:{node.name}", node
                if isinstance(node, ast.ClassDef):
                    todo.append((f"{name}:{node.name}", node))


def test_everything_public_has_a_docstring() -> None:
    """A method that implements what a library asks for (`forward`) says so with `typing.override` instead."""
    assert not [name for path in SOURCES for name, node in public(path) if not ast.get_docstring(node)]


SHIPPED = [(kind, name) for kind in plugins.KINDS for name in plugins.names(kind)]


def contract(kind: str) -> dict[str, ast.FunctionDef]:
    """The functions that the folder's Protocol asks for."""
    init = Path(plugins.__file__).parent.rglob(f"{kind}/__init__.py")
    protocols = [
        node
        for node in ast.parse(next(init).read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and any(getattr(base, "id", "") == "Protocol" for base in node.bases)
    ]
    assert len(protocols) == 1, f"{kind}/__init__.py holds one Protocol"
    return {node.name: node for node in protocols[0].body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("kind", "name"), SHIPPED)
def test_plugin_keeps_its_folders_contract(kind: str, name: str) -> None:
    """It loads, teaches (docstring), has a frozen `Params` that refuses unknown keys, and the functions as asked."""
    module = plugins.load(kind, name)
    assert module.__doc__
    assert issubclass(module.Params, BaseModel)
    assert module.Params.__doc__
    assert module.Params.model_config.get("frozen")
    assert module.Params.model_config.get("extra") == "forbid"
    for function, asked in contract(kind).items():
        given = list(inspect.signature(getattr(module, function)).parameters.values())
        wanted = [arg.arg for arg in asked.args.args[1:]]
        positional = [p.name for p in given if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)]
        assert positional[: len(wanted)] == wanted, f"{function}{inspect.signature(getattr(module, function))}"


def test_every_kind_of_plugin_ships_one() -> None:
    assert {kind for kind, _ in SHIPPED} == set(plugins.KINDS)


def test_plugin_folders_import_none_of_their_plugins() -> None:
    for kind, name in SHIPPED:
        folder = next(PACKAGE.rglob(f"{kind}/__init__.py"))
        assert not offenders([folder], {f"{module_of(folder)}.{name}"})


def project_files() -> list[Path]:
    """What git has or would take; a file that is being moved may be gone."""
    argv = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return sorted(path for name in set(listed) - {""} if (path := ROOT / name).is_file())


def test_the_readme_names_every_file() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w.-]+", readme))
    marks = {"__init__.py", "py.typed"}  # of packages
    files = [path for path in project_files() if path.is_relative_to(PACKAGE) and path.name not in marks]
    assert not [str(path.relative_to(ROOT)) for path in files if path.name not in named]


# Each pattern is written so that it does not match itself.
@pytest.mark.parametrize(
    "pattern",
    [
        r"\b(TO[D]O|FIXM[E]|XX[X])\b",
        r"p[y]pi\.org|python[h]osted|npm[j]s\.|d[e]bian\.org|d[o]wnload\.pytorch",
        r"(?<![\w.])/(wor[k]|far[m]|roo[t]|op[t])/",
    ],
    ids=["unfinished", "registry host", "path of a machine"],
)
def test_the_tree_has_no(pattern: str) -> None:
    found = re.compile(pattern)
    hits: list[str] = []
    for path in project_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        hits += [
            f"{path.relative_to(ROOT)}:{n}: {line.strip()}" for n, line in enumerate(lines, 1) if found.search(line)
        ]
    assert not hits
