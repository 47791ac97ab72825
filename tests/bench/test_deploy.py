"""The work folder on a device: private, gone afterwards, nothing sent twice. On this host and on real targets."""

import os
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import lab
import pytest
import targets

from edgekit.bench import deploy
from edgekit.bench.transports import Transport, local, ssh
from edgekit.errors import DeviceError, InputError


@pytest.fixture
def host() -> Iterator[Transport]:
    """This host as a device."""
    with local.connect(local.Params()) as transport:
        yield transport


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(os.urandom(500_000))
    return path


def below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_the_folder_is_private_and_goes_with_the_bench(host: Transport, model: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    with deploy.opened(host, str(work)) as place:
        assert place.folder == str(work / "run")
        assert stat.S_IMODE((work / "run").stat().st_mode) == 0o700
        assert not list((work / "run").iterdir())
        place.put({"model.tflite": model, "lib/runtime.so": model})
        assert (work / "run/model.tflite").read_bytes() == (work / "run/lib/runtime.so").read_bytes()
        assert host.run(["test", "-x", f"{place.folder}/lib/runtime.so"], 5).code == 0
        place.send(model, f"{place.folder}/inputs")
        place.get(f"{place.folder}/inputs", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == model.read_bytes()
    assert below(work) == {".edgekit", "cache", f"cache/{digest(model)}"}
    assert stat.S_IMODE(work.stat().st_mode) == 0o700


def digest(path: Path) -> str:
    return subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]


def test_a_home_is_the_devices_own(host: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "a home"))
    with deploy.opened(host, "~/w $(touch pwned)'\n") as place:
        assert place.folder == f"{tmp_path / 'a home'}/w $(touch pwned)'\n/run"
        assert Path(place.folder).is_dir()


def test_an_unchanged_file_is_not_sent_again(host: Transport, model: Path, tmp_path: Path) -> None:
    cached = tmp_path / "work/cache" / digest(model)
    before = None
    for _ in range(2):
        with deploy.opened(host, str(tmp_path / "work")) as place:
            place.put({"model": model})
            assert before in (None, cached.stat().st_ino)
            before = cached.stat().st_ino
    cached.write_bytes(b"damaged since")
    with deploy.opened(host, str(tmp_path / "work")) as place:
        place.put({"model": model})
        assert Path(place.folder, "model").read_bytes() == model.read_bytes()
    model.write_bytes(b"another version")
    with deploy.opened(host, str(tmp_path / "work")) as place:
        place.put({"model": model})
        assert Path(place.folder, "model").read_bytes() == b"another version"


def test_what_is_long_unused_is_removed(host: Transport, model: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    with deploy.opened(host, str(work)) as place:
        place.put({"model": model})
    for name, days in (("old", 32), ("recent", 28), ("broken.part", 0)):
        (work / "cache" / name).write_bytes(b"")
        os.utime(work / "cache" / name, (time.time() - days * 86400,) * 2)
    os.utime(work / "cache" / digest(model), (time.time() - 29 * 86400,) * 2)
    with deploy.opened(host, str(work)) as place:
        place.put({"model": model})  # which is used now
        assert below(work / "cache") == {"recent", digest(model)}
    assert (work / "cache" / digest(model)).stat().st_mtime > time.time() - 600


def test_one_bench_at_a_time(host: Transport, tmp_path: Path) -> None:
    work = str(tmp_path / "work")
    with (
        deploy.opened(host, work) as place,
        pytest.raises(DeviceError, match=rf"another edgekit works there: keeper \d+ of .*process {os.getpid()}"),
        deploy.opened(host, work),
    ):
        pass
    with deploy.opened(host, work) as place:
        assert Path(place.folder).is_dir()


def test_of_many_at_once_one_gets_the_folder(tmp_path: Path) -> None:
    """Also where a dead keeper's lock lies there."""
    work = tmp_path / "work"
    with local.connect(local.Params()) as host, deploy.opened(host, str(work)):
        pass
    (work / "lock").symlink_to("999999999 of somebody long dead")
    inside, most, busy = 0, 0, 0
    lock = threading.Lock()

    def bench() -> None:
        nonlocal inside, most, busy
        try:
            with local.connect(local.Params()) as host, deploy.opened(host, str(work)) as place:
                with lock:
                    inside += 1
                    most = max(most, inside)
                assert Path(place.folder).is_dir()
                time.sleep(1)
                assert Path(place.folder).is_dir()
                with lock:
                    inside -= 1
        except DeviceError:
            with lock:
                busy += 1

    threads = [threading.Thread(target=bench) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert most == 1
    assert busy == 5


def test_folders_that_are_not_ours_are_left_alone(host: Transport, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "precious").write_text("x")
    os.utime(tmp_path / "cache" / "precious", (0, 0))
    with pytest.raises(DeviceError, match=r"not edgekit's"), deploy.opened(host, str(tmp_path)):
        pass
    deploy.clean(host, str(tmp_path))
    assert (tmp_path / "cache" / "precious").exists()
    assert below(tmp_path) == {"cache", "cache/precious"}


def test_clean_removes_all_that_is_ours(host: Transport, model: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    deploy.clean(host, str(work))
    with deploy.opened(host, str(work)) as place:
        place.put({"model": model})
        (work / "mine").write_text("not edgekit's")
        deploy.clean(host, str(work))  # also while one works there
        assert below(work) == {"mine"}
    (work / "mine").unlink()
    with deploy.opened(host, str(work)):
        pass
    deploy.clean(host, str(work))
    assert not work.exists()


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "", "a//b", "./a"])
def test_names_that_leave_the_folder_are_refused(host: Transport, model: Path, tmp_path: Path, name: str) -> None:
    with deploy.opened(host, str(tmp_path / "w")) as place, pytest.raises(InputError, match="names no file inside"):
        place.put({name: model})


@pytest.mark.parametrize("workdir", ["work", "", "./work", "~other/x", "-rf"])
def test_work_folders_must_be_absolute(host: Transport, workdir: str) -> None:
    with pytest.raises(InputError, match="must be an absolute path"), deploy.opened(host, workdir):
        pass
    with pytest.raises(InputError, match="must be an absolute path"):
        deploy.clean(host, workdir)


def test_a_work_folder_that_cannot_be_made(host: Transport, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DeviceError, match=r"cannot be made: .*file.*name another one: workdir"),
        deploy.opened(host, str(tmp_path / "file" / "work")),
    ):
        pass


def test_a_local_file_that_is_not_there(host: Transport, tmp_path: Path) -> None:
    with deploy.opened(host, str(tmp_path / "w")) as place, pytest.raises(InputError, match="No such file"):
        place.put({"model": tmp_path / "none"})


@pytest.mark.target
@pytest.mark.parametrize("kind", targets.KINDS)
def test_on_real_devices(kind: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script runs from where it was put, and a second bench sends nothing."""
    script = tmp_path / "runner"
    script.write_text('#!/bin/sh\ncat "$(dirname "$0")/lib/model" | wc -c\n')
    try:
        with targets.target(kind, tmp_path) as (target, env):
            for name, value in env.items():
                monkeypatch.setenv(name, value)
            for bench in range(2):
                with target.connect() as transport, deploy.opened(transport, f"{target.folder}/w x") as place:
                    if bench:
                        assert len(list((target.files / "w x/cache").iterdir())) == 2
                    place.put({"lib/model": model, "runner": script})
                    assert transport.run([f"{place.folder}/runner"], 10).stdout.split() == [b"500000"]
                target.wait_until_empty()
            with target.connect() as transport:
                deploy.clean(transport, f"{target.folder}/w x")
            assert not (target.files / "w x").exists()
    except lab.Missing as reason:
        pytest.skip(str(reason))


@pytest.mark.target
def test_few_commands_serve_a_device(sshd: lab.Sshd, model: Path) -> None:
    """A connection, the keeper and the check of what is there: what 20 devices at once cost is 20 times this."""
    link = ssh.Params(host=sshd.host, config=str(sshd.config))
    enter, commands = sshd.root / "enter", sshd.root / "commands"
    enter.write_text(enter.read_text().replace("cd ", f"echo >>{commands}; cd ", 1))
    with ssh.connect(link) as transport, deploy.opened(transport, "~/w") as place:
        place.put({"model": model})
    commands.unlink()
    with ssh.connect(link) as transport, deploy.opened(transport, "~/w") as place:
        place.put({"model": model})
    assert commands.read_text() == "\n" * 3
