"""Device records: those that ship, the user's own, what they inherit, and names that are none."""

from pathlib import Path

import pytest

from edgekit import devices, plugins, recipe
from edgekit.errors import InputError
from edgekit.records import Budget, Preconditions, Use

SHIPPED = (
    "android", "galaxy-s24", "host", "jetson-orin-nano", "linux-arm64", "linux-armv7", "pixel-8", "rpi-4", "rpi-5"
)  # fmt: skip


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder of records, empty; the working folder has none."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "config" / "edgekit" / "devices"
    folder.mkdir(parents=True)
    return folder


def test_what_ships() -> None:
    assert tuple(devices.known()) == SHIPPED
    for name in SHIPPED:
        device = devices.find(name)
        assert device.name == name
        assert device.description
        assert recipe.target(name).formats == device.formats
        for kind, used in (("transports", device.link), ("meters", device.meter)):
            if used:
                plugins.use(kind, used)


def test_the_comments_in_records_are_good_records(own: Path) -> None:
    """What a comment shows after `# my-...toml` is read as such a file."""
    shown = 0
    for name, path in devices.known().items():
        _, begins, rest = path.read_text(encoding="utf-8").partition("#     # my-")
        if not begins:
            continue
        lines = [f"# my-{rest.splitlines()[0]}"]
        for line in rest.splitlines()[1:]:
            if not line.startswith("#     "):
                break
            lines.append(line.removeprefix("#     "))
        (own / "mine.toml").write_text("\n".join(lines), encoding="utf-8")
        mine = devices.find("mine")
        assert mine.abi == devices.find(name).abi
        assert mine.link
        plugins.use("transports", mine.link)
        if mine.meter:
            plugins.use("meters", mine.meter)
        shown += 1
    assert shown == len(SHIPPED) - 1  # all but host


def test_boards_name_no_address() -> None:
    assert [name for name in SHIPPED if devices.find(name).link is None] == [
        "jetson-orin-nano", "linux-arm64", "linux-armv7", "rpi-4", "rpi-5"
    ]  # fmt: skip
    assert devices.find("host").link == Use(name="local")
    assert devices.find("pixel-8").link == Use(name="adb")


def test_base_inherits_and_is_replaced(own: Path) -> None:
    (own / "mine.toml").write_text(
        'base = "pixel-8"\nlink = { name = "adb", serial = "s" }\n[preconditions]\nmin_battery_percent = 80\n'
        '[[budgets]]\nmetric = "latency_s"\nlimit = 0.01\n'
    )
    mine, base = devices.find("mine"), devices.find("pixel-8")
    assert mine.preconditions == base.preconditions.model_copy(update={"min_battery_percent": 80})
    assert base.preconditions != Preconditions()
    assert mine.budgets == (Budget(metric="latency_s", limit=0.01),)
    assert mine.link == Use.model_validate({"name": "adb", "serial": "s"})
    assert (mine.os, mine.abi, mine.meter, mine.lengths) == (base.os, base.abi, base.meter, base.lengths)


def test_the_users_own_stand_before_and_may_build_on_their_namesakes(own: Path, tmp_path: Path) -> None:
    (own / "rpi-5.toml").write_text('base = "rpi-5"\nlink = { name = "ssh", host = "pi" }\n')
    assert devices.find("rpi-5").link == Use.model_validate({"name": "ssh", "host": "pi"})
    assert devices.find("rpi-5").meter == Use(name="pmic")
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices" / "rpi-5.toml").write_text('base = "rpi-5"\ndescription = "the one on the desk"\n')
    mine = devices.find("rpi-5")
    assert (mine.description, mine.link) == ("the one on the desk", Use.model_validate({"name": "ssh", "host": "pi"}))
    assert devices.known()["rpi-5"] == Path("devices/rpi-5.toml")


def test_a_path(tmp_path: Path) -> None:
    (tmp_path / "board.toml").write_text('base = "linux-arm64"\n')
    assert devices.find("board.toml").name == "board"
    assert devices.find(str(tmp_path / "board.toml")).abi == "arm64-v8a"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('base = "b"', "circle"),
        ('base = "mine"', "circle"),
        ('base = "andriod"', 'did you mean "android"'),
        ("base = 3", 'key "base"'),
        ('base = ["android"]', 'key "base"'),
        ('base = "android"\nlinks = 1', 'unknown key "links"; did you mean "link"'),
        ('base = "android"\nthreads = 2', 'unknown key "threads"; it belongs into another table'),
        ('base = "android"\nlengths = [64, 32]', "ascend"),
        ('base = "android"\n[preconditions]\nmin_battery_percent = 120', "min_battery_percent"),
        ('base = "android"\npreconditions = 3', "preconditions"),
        ('abi = "arm64-v8a"', '"formats" is missing'),
        ("base = ", "not valid TOML"),
    ],
)
def test_what_is_wrong_in_a_record(own: Path, text: str, words: str) -> None:
    (own / "mine.toml").write_text(text)
    (own / "b.toml").write_text('base = "c"\n')
    (own / "c.toml").write_text('base = "b"\n')
    with pytest.raises(InputError) as error:
        devices.find("mine")
    assert words in str(error.value)
    assert str(own) in str(error.value)


@pytest.mark.parametrize("name", ["hots", "", ":", "adb:", "ssh:", "x:y", "no.toml", "../host", "a\0.toml", "a" * 5000])
def test_names_that_are_none(name: str) -> None:
    for one in {name, f"x{name}.toml"}:
        with pytest.raises(InputError, match=r"--device: (no device is called|there is no file)"):
            devices.find(one)
    with pytest.raises(InputError, match=r'--target: .*did you mean "host"'):
        devices.find("hosts", "--target")


def test_a_folder_is_no_record(own: Path) -> None:
    (own / "mine.toml").mkdir()
    with pytest.raises(InputError, match=r"there is no file .*mine\.toml"):
        devices.find("mine")


@pytest.mark.parametrize("address", ["8A1X0", "a b", "$(reboot)", "'; ls", "-s", "a\nb", "192.168.1.9:5555", "[::1]:5"])
def test_a_link_in_the_name_is_taken_as_it_is(address: str) -> None:
    """Whether it can be one is for the link to say; here it becomes one value."""
    phone, board = devices.find(f"adb:{address}"), devices.find(f"ssh:{address}")
    assert phone.link == Use.model_validate({"name": "adb", "serial": address})
    assert (phone.name, phone.os) == (f"adb:{address}", "android")
    assert board.link == Use.model_validate({"name": "ssh", "host": address})
    assert (board.abi, board.os) == ("arm64-v8a", "linux")
