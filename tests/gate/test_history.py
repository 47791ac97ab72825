"""A gate's history in each kind of place: what was added is read, nothing is lost, and a password is never shown."""

import fcntl
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lab
import postgres
import pytest

from edgekit.errors import InputError
from edgekit.gate import history
from edgekit.results import Check, Entry, Interval

KINDS = ["jsonl", "sqlite", "sqlite-url", pytest.param("postgresql", marks=pytest.mark.target)]


def entry(second: int = 0, **values: Any) -> Entry:
    check = Check(
        device="pixel-8", metric="latency_s", length=128, unit="s", rule="change", answer="PASS", reason="as fast",
        baseline=0.01, candidate=0.0101, change=0.01, interval=Interval(low=0.0, high=0.02), floor=0.03,
    )  # fmt: skip
    given: dict[str, Any] = {
        "at": f"2026-11-21T07:{second // 60:02}:{second % 60:02}+00:00", "event": "gate", "bundle": "punctuation",
        "digest": "d" * 64, "baseline_digest": None, "format": "tflite", "answer": "PASS", "checks": (check,),
    }  # fmt: skip
    return Entry.model_validate({**given, **values})


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    try:
        with postgres.server() as url:
            yield url
    except lab.Missing as reason:
        pytest.skip(str(reason))


@pytest.fixture(params=KINDS)
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place that nothing was added to yet."""
    if request.param == "postgresql":
        return new_database(request.getfixturevalue("server"))
    path = tmp_path / "new folder" / ("gates.jsonl" if request.param == "jsonl" else "gates.db")
    return f"sqlite:///{path}" if request.param == "sqlite-url" else str(path)


def new_database(server: str) -> str:
    import psycopg

    name = f"gates{time.monotonic_ns()}"
    with psycopg.connect(server, autocommit=True) as link:
        link.execute(f"CREATE DATABASE {name}")
    return server.replace("/postgres", f"/{name}")


def test_what_was_added_is_read_in_order_of_time(where: str) -> None:
    """Also where clocks write their zones in different ways, and with names that a file or database may not like."""
    odd = entry(1, bundle="'; DROP TABLE edgekit_history; --\0\ud800\n\u2028 ü", at="2026-11-21T08:00:01+01:00")
    accept = entry(2, event="accept", answer=None, checks=(), format=None, baseline_digest="b" * 64)
    added = [entry(5), accept, odd, entry(4, at="2026-11-21T07:00:04Z"), entry(3, at="2026-11-21T07:00:03")]
    assert history.read(where) == ()
    for one in added:
        history.add(where, one)
    assert history.read(where) == (odd, accept, added[4], added[3], added[0])


def test_a_place_that_is_ready_takes_an_entry(where: str) -> None:
    """A gate asks before it measures; twice does no harm."""
    history.ready(where)
    history.ready(where)
    assert history.read(where) == ()
    history.add(where, entry())
    history.ready(where)
    assert history.read(where) == (entry(),)


def test_a_file_that_another_process_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for, but not for ever."""
    path = tmp_path / "gates.jsonl"
    history.add(str(path), entry(1))
    monkeypatch.setattr(history, "_WAIT_S", 1)
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        began = time.monotonic()
        assert "another process has held it for 1 s" in refused(str(path), add=True)
        assert "another process has held it for 1 s" in refused(str(path))
        assert time.monotonic() - began < 8
        threading.Timer(0.3, lambda: fcntl.flock(held, fcntl.LOCK_UN)).start()
        history.add(str(path), entry(2))
    assert history.read(str(path)) == (entry(1), entry(2))


def test_a_read_makes_nothing(tmp_path: Path) -> None:
    for name in ("gates.jsonl", "gates.db"):
        assert history.read(str(tmp_path / name)) == ()
    assert history.read(f"sqlite:///{tmp_path}/gates.db") == ()
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_beside_the_history(tmp_path: Path) -> None:
    for name in ("gates.jsonl", "gates.db"):
        history.add(str(tmp_path / name), entry())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gates.db", "gates.jsonl"]


ADDS = """
import sys
from edgekit.gate import history
from edgekit.results import Entry
where, who = sys.argv[1:]
print("ready", flush=True)
sys.stdin.read(1)
for n in range(50):
    history.add(where, Entry(at=f"2026-11-21T07:00:{n:02}Z", event="gate", bundle=who, digest=str(n) + "x" * 9000,
                             baseline_digest=None, format=None, answer="PASS"))
"""


def test_two_processes_lose_nothing(where: str) -> None:
    """They also make folder, file and table at the same moment."""
    argv = [sys.executable, "-c", ADDS, where]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    both = [subprocess.Popen([*argv, who], **pipes) for who in ("a", "b")]
    try:
        for process in both:
            assert process.stdout and process.stdout.readline() == b"ready\n"
        for process in both:
            assert process.stdin
            process.stdin.write(b"x")
            process.stdin.flush()
        ends = [process.communicate(timeout=120) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], ends
    found = history.read(where)
    assert len(found) == 100
    for who in ("a", "b"):
        assert [one.digest.rstrip("x") for one in found if one.bundle == who] == [str(n) for n in range(50)]


@pytest.mark.parametrize("cut", [1, 5, 300])
def test_a_line_that_was_cut_off_spoils_no_other(cut: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gates.jsonl"
    history.add(str(path), entry(1))
    history.add(str(path), entry(2))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    path.write_bytes(whole[: first + cut])
    assert history.read(str(path)) == (entry(1),)
    history.add(str(path), entry(3))
    assert history.read(str(path)) == (entry(1), entry(3))
    assert path.read_bytes().startswith(whole[: first + cut])
    assert "gates.jsonl line 2: was cut off" in capfd.readouterr().err


def test_a_last_line_without_its_newline_counts(tmp_path: Path) -> None:
    path = tmp_path / "gates.jsonl"
    history.add(str(path), entry(1))
    path.write_bytes(path.read_bytes().rstrip())
    history.add(str(path), entry(2))
    assert history.read(str(path)) == (entry(1), entry(2))


def test_a_line_is_plain_json(tmp_path: Path) -> None:
    path = tmp_path / "gates.jsonl"
    history.add(str(path), entry())
    (line,) = path.read_text(encoding="ascii").splitlines()
    assert json.loads(line) == entry().model_dump(mode="json")


def refused(where: str, add: bool = False) -> str:
    with pytest.raises(InputError) as caught:
        history.add(where, entry()) if add else history.read(where)
    assert where not in str(caught.value) or "://" not in where
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("<<<<<<< HEAD\n", "line 1: is no entry of a gate's history"),
        ('{"text": "a corpus"}\n', 'line 1: key "at" is missing'),
        ('{"at":"yesterday","event":"accept","bundle":"b","digest":"d","baseline_digest":null,"format":null,'
         '"answer":null}', 'line 1: key "at": is no time'),
        ("[" * 5000 + "]" * 5000, "line 1: is no entry"),
        (b"\xff\xfe\n", "line 1: is no entry"),
    ],
    ids=["conflict", "other", "time", "deep", "binary"],
)  # fmt: skip
def test_a_line_that_is_no_entry(lines: str | bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "gates.jsonl"
    path.write_bytes(lines.encode() if isinstance(lines, str) else lines)
    with pytest.raises(InputError) as caught:
        history.read(str(path))
    assert said in str(caught.value).partition("\n")[0]


def test_another_file_is_not_written_to(tmp_path: Path) -> None:
    for name, text in (("train.jsonl", '{"text": "a"}\n'), ("notes.md", "# Notes\n" * 200)):
        path = tmp_path / name
        path.write_text(text)
        said = refused(str(path), add=True)
        assert "name another file" in said
        assert path.read_text() == text
    assert "not a database" in refused(str(tmp_path / "notes.md"))


def test_a_row_that_is_no_entry(tmp_path: Path) -> None:
    path = tmp_path / "gates.db"
    history.add(str(path), entry())
    link = sqlite3.connect(path)
    with link:
        link.execute("UPDATE edgekit_history SET entry = 'gone'")
    link.close()
    assert "row 1 of edgekit_history: is no entry" in refused(str(path))


def test_columns_answer_a_query(tmp_path: Path) -> None:
    path = tmp_path / "gates.db"
    history.add(str(path), entry(answer="REGRESSION"))
    link = sqlite3.connect(path)
    rows = link.execute("SELECT at, event, bundle, digest, answer FROM edgekit_history").fetchall()
    link.close()
    assert rows == [("2026-11-21T07:00:00+00:00", "gate", "punctuation", "d" * 64, "REGRESSION")]


LIMITED = """
import resource, sys
from edgekit.errors import InputError
from edgekit.gate import history
from edgekit.results import Entry
where, limit = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
one = Entry(at="2026-11-21T07:00:09Z", event="gate", bundle="b" * 20000, digest="d", baseline_digest=None, format=None,
            answer="PASS")
try:
    history.add(where, one)
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["gates.jsonl", "gates.db"])
def test_a_full_disk(name: str, tmp_path: Path) -> None:
    """Only a part of the line finds room: it is taken back."""
    path = tmp_path / name
    history.add(str(path), entry())
    before = path.read_bytes()
    argv = [sys.executable, "-c", LIMITED, str(path), str(len(before) + 100)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "cannot be written" in done.stdout
    assert "make room" in done.stdout
    assert path.read_bytes() == before if name.endswith("jsonl") else history.read(str(path)) == (entry(),)


@pytest.mark.parametrize("name", ["gates.jsonl", "gates.db"])
def test_a_file_that_may_not_be_written(name: str, tmp_path: Path) -> None:
    path = tmp_path / "kept" / name
    history.add(str(path), entry())
    path.chmod(0o444)
    path.parent.chmod(0o555)
    try:
        if os.geteuid() == 0:  # root may write anywhere: as nobody, with pytest's private folders out of the way
            tmp_path = Path(shutil.copytree(path.parent, f"/tmp/edgekit-readonly-{os.getpid()}-{name}"))
            try:
                code = (
                    "import os, sys\nfrom edgekit.errors import InputError\nfrom edgekit.gate import history\n"
                    "import sqlalchemy.dialects.sqlite.pysqlite, sqlalchemy.pool\n"
                    "one = history.read(sys.argv[1])[0]\nos.setgroups([])\nos.setgid(65534)\nos.setuid(65534)\n"
                    "try: history.add(sys.argv[1], one)\nexcept InputError as error: print(error)\n"
                )
                argv = [sys.executable, "-c", code, str(tmp_path / name)]
                said = subprocess.run(argv, capture_output=True, text=True, timeout=60).stdout
            finally:
                shutil.rmtree(tmp_path)
        else:
            said = refused(str(path), add=True)
        assert "cannot be written" in said
        assert "name another file with --history" in said
        assert history.read(str(path)) == (entry(),)
    finally:
        path.parent.chmod(0o755)


def test_a_folder_or_nothing_is_no_history(tmp_path: Path) -> None:
    folder = tmp_path / "x.jsonl"
    folder.mkdir()
    assert "Is a directory" in refused(str(folder))
    assert "Is a directory" in refused(str(folder), add=True)
    assert "unable to open database file" in refused(str(tmp_path), add=True)
    assert "is empty" in refused("", add=True)
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(str(tmp_path / "file" / "gates.db"), add=True)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://me:s3cret@127.0.0.1:1/gates", "onnection refused"),
        ("postgres://me:s3cret@127.0.0.1:1/gates", "onnection refused"),
        ("postgresql://127.0.0.1:1/gates?user=me&password=s3cret", "onnection refused"),
        ("postgresql://me:s3cret@127.0.0.1:port/gates", "is no database's URL"),
        ("postgresql://me:s3cret", "is no database's URL"),
        ("postgresql://me:an@s3cret@host/gates", "must be written as %40"),
        ("postgresql://me:s3cret@127.0.0.1:1/gates?s3cret=1", "invalid connection option"),
        ("mysql://me:s3cret@127.0.0.1:1/gates", "needs its driver"),
        ("carrierpigeon://me:s3cret@127.0.0.1:1/gates", "knows no such kind"),
        ("://me:s3cret@h", "is no database's URL"),
    ],
)
def test_a_url_that_leads_nowhere_keeps_its_secret(url: str, said: str) -> None:
    for add in (False, True):
        found = refused(url, add)
        assert said in found
        assert "s3cret" not in found.replace('option "s3cret"', "")


def test_a_server_that_does_not_answer_is_not_waited_for() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        said = refused(f"postgresql://me:s3cret@127.0.0.1:{silent.getsockname()[1]}/gates?connect_timeout=2", add=True)
        assert time.monotonic() - began < 8
    assert "timeout" in said


def test_without_the_driver(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom edgekit.errors import InputError\nfrom edgekit.gate import history\n"
        "sys.modules[sys.argv[1]] = None\ntry: history.read(sys.argv[2])\nexcept InputError as error: print(error)"
    )
    (tmp_path / "gates.db").touch()
    for module, where, extra in (
        ("psycopg", "postgresql://127.0.0.1:1/x", "pip install 'edgekit[postgres]'"),
        ("sqlalchemy", "postgresql://127.0.0.1:1/x", "pip install 'edgekit[gate]'"),
        ("sqlalchemy", str(tmp_path / "gates.db"), "pip install 'edgekit[gate]'"),
        ("sqlalchemy", f"sqlite:///{tmp_path}/gates.db", "pip install 'edgekit[gate]'"),
    ):
        done = subprocess.run([sys.executable, "-c", code, module, where], capture_output=True, text=True, timeout=60)
        assert extra in done.stdout, done


@pytest.mark.target
def test_what_a_server_refuses(server: str) -> None:
    import psycopg

    password = server.rpartition("@")[0].rpartition(":")[2]
    wrong = refused(server.replace(password, "not-the-one"), add=True)
    assert "password authentication failed" in wrong
    assert "not-the-one" not in wrong
    assert "does not exist" in refused(server.replace("/postgres", "/nowhere"))

    where = new_database(server)
    history.add(where, entry())
    with psycopg.connect(where, autocommit=True) as link:
        link.execute("CREATE ROLE reader LOGIN PASSWORD 'only'")
        link.execute("GRANT SELECT ON edgekit_history TO reader")
    reader = where.replace(f"edgekit:{password}", "reader:only")
    assert history.read(reader) == (entry(),)
    assert "permission denied" in refused(reader, add=True)


@pytest.mark.target
def test_a_user_who_may_only_add(server: str) -> None:
    """The table is there: no right to make one is asked for."""
    import psycopg

    password, where = server.rpartition("@")[0].rpartition(":")[2], new_database(server)
    history.add(where, entry(1))
    with psycopg.connect(where, autocommit=True) as link:
        link.execute("CREATE ROLE writer LOGIN PASSWORD 'only'")
        link.execute("GRANT SELECT, INSERT ON edgekit_history TO writer")
        link.execute("GRANT USAGE ON SEQUENCE edgekit_history_id_seq TO writer")
    history.add(where.replace(f"edgekit:{password}", "writer:only"), entry(2))
    assert history.read(where) == (entry(1), entry(2))


@pytest.mark.target
def test_a_table_that_is_locked_is_not_waited_for(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import psycopg

    where = new_database(server)
    history.add(where, entry())
    monkeypatch.setattr(history, "_WAIT_S", 1)
    with psycopg.connect(where) as link:
        link.execute("LOCK TABLE edgekit_history")
        assert "canceling statement due to statement timeout" in refused(where, add=True)
        assert "canceling statement due to statement timeout" in refused(where)
    assert history.read(where) == (entry(),)


@pytest.mark.target
def test_a_killed_run_leaves_whole_rows(server: str) -> None:
    where = new_database(server)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", ADDS, where, "a"], **pipes) as process:
        assert process.stdout and process.stdin
        process.stdout.readline()
        process.stdin.write(b"x")
        process.stdin.flush()
        lab.wait_for("the first entry", lambda: len(history.read(where)) > 2, 30)
        process.kill()
    found = history.read(where)
    assert [one.digest.rstrip("x") for one in found] == [str(n) for n in range(len(found))]
    history.add(where, entry(59))
    assert len(history.read(where)) == len(found) + 1
