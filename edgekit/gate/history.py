"""A gate's history: one entry a run, in a file or a database. It feeds trends on a report and never a verdict.

    gates.jsonl                              one JSON line a run; the file may lie in git
    gates.db (any other path)                SQLite
    postgresql://user:password@host/name     a database of a team, through SQLAlchemy

Several gates may write at once. A file is written in one piece under a lock; a line that a killed run left half
written is not read, and nothing else is touched for it. A password never stands in a message.
"""

import errno
import fcntl
import json
import os
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import progress
from edgekit.errors import InputError, printable
from edgekit.records import Format, parse
from edgekit.results import Entry, Verdict

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine, Table

_WAIT_S = 10
"""The longest wait for a lock, a server's greeting or its answer."""
_START = b'{"at":'
"""How each line of a file begins."""


def entry(verdict: Verdict) -> Entry:
    """The line of a gate run."""
    formats: set[Format] = {pair.candidate.workload.format for pair in verdict.measured}
    return Entry(
        at=verdict.began,
        event="gate",
        bundle=verdict.candidate.name,
        digest=verdict.candidate.digest,
        baseline_digest=verdict.baseline.digest,
        format=formats.pop() if len(formats) == 1 else None,
        answer=verdict.answer,
        checks=verdict.checks,
    )


def ready(where: str) -> None:
    """Make what is missing at `where`: folder, file or table.

    Raises `InputError` where that fails, or where `add` would not be let write; so a gate asks before it measures.
    """
    path = _path(where)
    if path:
        with _told(where, "written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".jsonl":
                os.close(_open(path))
                return
            for place in (path.parent, path):  # SQLite makes a journal beside its file
                if place.exists() and not os.access(place, os.W_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    with _database(where, "written") as engine:
        table = _table()
        if not _has(engine, table):
            _create(engine, table)


def add(where: str, entry: Entry) -> None:
    """Add one entry to the history at `where`: a path that ends in `.jsonl`, the path of an SQLite file, or a URL.

    What is missing is made. Raises `InputError` where that or the writing fails; what other runs have written stays
    as it was.
    """
    ready(where)
    # ASCII, so that a character is never cut in two, and what a database would not take as text is escaped
    text = json.dumps(entry.model_dump(mode="json"), separators=(",", ":"))
    path = _path(where)
    if path and path.suffix == ".jsonl":
        with _told(where, "written"):
            _append(path, text.encode() + b"\n")
        return
    with _database(where, "written") as engine, engine.begin() as connection:
        _hurry(connection)
        columns = {name: _column(getattr(entry, name)) for name in ("at", "event", "bundle", "digest", "answer")}
        connection.execute(_table().insert().values(**columns, entry=text))


def read(where: str) -> tuple[Entry, ...]:
    """All entries at `where`, in order of time; none where there is no such file or table yet.

    Raises `InputError` where it cannot be read or holds something else.
    """
    path = _path(where)
    if path and not path.exists():
        return ()
    if path and path.suffix == ".jsonl":
        with _told(where, "read"):
            lines = _lines(path)
        found = [one for number, line in lines if (one := _read_line(line, f"{where} line {number}"))]
    else:
        with _database(where, "read") as engine:
            table, rows = _table(), []
            if _has(engine, table):
                with engine.begin() as connection:
                    _hurry(connection)
                    rows = list(connection.execute(table.select().order_by(table.c.at, table.c.id)))
        found = [_read_row(row.entry, f"{_shown(where)}: row {row.id} of {table.name}") for row in rows]
    return tuple(one for _, one in sorted(found, key=lambda pair: pair[0]))


def _path(where: str) -> Path | None:
    """The file that `where` names; `None`: it is a URL of a server."""
    if not where.strip():
        raise InputError("--history: is empty; name a file (gates.jsonl, gates.db) or a database's URL")
    if "://" not in where:
        return Path(where)
    if where.startswith("sqlite") and (name := _url(where).database):
        return Path(name)
    return None


@contextmanager
def _told(where: str, done: str) -> Generator[None]:
    """A failed system call as an `InputError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            todo = "nothing was added; make room and run the gate again"
        else:
            todo = "name another file with --history, or change what keeps edgekit from this one"
        raise InputError(f"--history {where}: cannot be {done}: {error.strerror or error}; {todo}") from None


def _open(path: Path) -> int:
    """The file, held, for reading and adding; it is made where it is missing."""
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _lock(file, fcntl.LOCK_EX)
        if not _ours(os.pread(file, len(_START), 0).partition(b"\n")[0]):
            raise InputError(f"--history {path}: holds something else than a gate's history; name another file")
    except BaseException:
        os.close(file)
        raise
    return file


def _append(path: Path, line: bytes) -> None:
    """Add a line in one write, after the newline that a run which was killed may owe."""
    file = _open(path)
    try:
        size = os.fstat(file).st_size
        whole = (b"\n" if size and os.pread(file, 1, size - 1) != b"\n" else b"") + line
        try:
            if os.write(file, whole) < len(whole):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(file, size)
            raise
    finally:
        os.close(file)


def _ours(line: bytes) -> bool:
    return line.startswith(_START) or _START.startswith(line)


def _lock(file: int, kind: int) -> None:
    """Hold the file itself, so that no lock file is left beside it; it is let go when it is closed."""
    end = time.monotonic() + _WAIT_S
    while True:
        try:
            return fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise OSError(errno.EBUSY, f"another process has held it for {_WAIT_S} s") from None
            time.sleep(0.01)


def _lines(path: Path) -> list[tuple[int, bytes]]:
    """The lines with their numbers."""
    with path.open("rb") as file:
        _lock(file.fileno(), fcntl.LOCK_SH)
        return list(enumerate(file.read().split(b"\n"), 1))


def _read_line(line: bytes, place: str) -> tuple[datetime, Entry] | None:
    """A file's line with its time; `None`: it is empty, or was cut off."""
    if not line.strip():
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        if not _ours(line):
            raise _no_entry(place) from None
        progress.say(f"{place}: was cut off, as by a run that was killed, and is left out; remove the line")
        return None
    return _timed(value, place)


def _read_row(text: str, place: str) -> tuple[datetime, Entry]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise _no_entry(place) from None
    return _timed(value, place)


def _timed(value: Any, place: str) -> tuple[datetime, Entry]:
    """What was read as JSON, with its time."""
    found = parse(Entry, value, place)
    try:
        moment = datetime.fromisoformat(found.at)
    except ValueError:
        raise InputError(f'{place}: key "at": is no time in ISO 8601, found {found.at!r}') from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC), found


def _no_entry(place: str) -> InputError:
    return InputError(f"{place}: is no entry of a gate's history; remove it")


def _url(where: str) -> "URL":
    """The URL of a database, for PostgreSQL with the driver that edgekit brings."""
    try:
        from sqlalchemy import URL, make_url
        from sqlalchemy.exc import ArgumentError
    except ModuleNotFoundError:
        raise InputError("a history in a database needs sqlalchemy: pip install 'edgekit[gate]'") from None

    if "://" not in where:
        return URL.create("sqlite", database=where)
    scheme = where.partition("://")[0]
    try:
        url = make_url(where)
    except (ArgumentError, ValueError):
        raise InputError(
            f"--history {printable(scheme)}://...: is no database's URL; write postgresql://user:password@host/name, "
            "special characters of the password as %40"
        ) from None
    if "@" in (url.host or ""):
        raise InputError(f"--history {printable(scheme)}://...: an @ in the password must be written as %40")
    return url.set(drivername="postgresql+psycopg") if url.drivername in ("postgres", "postgresql") else url


def _shown(where: str) -> str:
    """`where` without user, password and options."""
    if "://" not in where:
        return where
    url = _url(where)
    port = f":{url.port}" if url.port else ""
    return printable(f"{url.get_backend_name()}://{url.host or ''}{port}/{url.database or ''}")


@contextmanager
def _database(where: str, done: str) -> "Generator[Engine]":
    """A connection's engine; whatever goes wrong with it is one `InputError`."""
    url, shown = _url(where), _shown(where)
    from sqlalchemy import create_engine
    from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError
    from sqlalchemy.pool import NullPool

    try:
        engine = create_engine(url, poolclass=NullPool, connect_args=_options(url))
    except NoSuchModuleError:
        raise InputError(
            f"--history {shown}: SQLAlchemy knows no such kind of database; write postgresql://... or a file's name"
        ) from None
    except ImportError as error:
        if url.drivername == "postgresql+psycopg":
            raise InputError(f"--history {shown}: needs psycopg: pip install 'edgekit[postgres]'") from None
        raise InputError(f"--history {shown}: needs its driver, the Python module {error.name}; install that") from None
    try:
        yield engine
    except (SQLAlchemyError, OSError, UnicodeError) as error:
        said = str(getattr(error, "orig", None) or error).strip()
        for secret in (url.password, url.query.get("password"), url.query.get("sslpassword")):
            said = said.replace(str(secret), "***") if secret else said
        todo = (
            "name another file with --history, or make room for it and let edgekit write there"
            if url.get_backend_name() == "sqlite"
            else "check that the server runs, its address, and what the user may do there"
        )
        raise InputError(f"--history {shown}: cannot be {done}: {printable(said)}; {todo}") from None
    finally:
        engine.dispose()


def _options(url: "URL") -> dict[str, Any]:
    """What keeps a connection from waiting for ever; the URL's own options count more."""
    if url.get_backend_name() == "sqlite":
        return {"timeout": _WAIT_S}
    if url.drivername != "postgresql+psycopg":
        return {}
    wanted = {
        "connect_timeout": _WAIT_S, "tcp_user_timeout": _WAIT_S * 1000, "keepalives_idle": _WAIT_S,
        "keepalives_interval": 2, "keepalives_count": 5, "application_name": "edgekit",
    }  # fmt: skip
    return {name: value for name, value in wanted.items() if name not in url.query}


def _table() -> "Table":
    """The entry as JSON text, beside what one would ask for in SQL."""
    from sqlalchemy import Column, Integer, MetaData, Table, Text

    return Table(
        "edgekit_history",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("at", Text, nullable=False),
        Column("event", Text, nullable=False),
        Column("bundle", Text, nullable=False),
        Column("digest", Text, nullable=False),
        Column("answer", Text),
        Column("entry", Text, nullable=False),
    )


def _column(value: str | None) -> str | None:
    """A database's text has no NUL."""
    return None if value is None else printable(value)


def _has(engine: "Engine", table: "Table") -> bool:
    from sqlalchemy import inspect

    return inspect(engine).has_table(table.name)


def _create(engine: "Engine", table: "Table") -> None:
    """Make the table, where no other process was quicker."""
    from sqlalchemy.exc import DBAPIError

    try:
        with engine.begin() as connection:
            _hurry(connection)
            table.create(connection, checkfirst=False)
    except DBAPIError:
        if not _has(engine, table):
            raise


def _hurry(connection: Any) -> None:
    """Bound what this transaction waits for; a setting of the connection would not pass a pooler."""
    from sqlalchemy import text

    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET LOCAL statement_timeout = '{_WAIT_S}s'"))
