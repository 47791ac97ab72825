from pathlib import Path

import pytest

from edgekit.corpora import hub
from edgekit.errors import InputError


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "train.csv").write_text("text,label\na good film,1\na dull film,0\n")
    (tmp_path / "films" / "validation.csv").write_text("text,label\nfine,1\n")
    return tmp_path


def test_a_folder_laid_out_as_on_the_hub(base: Path):
    params = hub.Params(dataset="films")
    train = list(hub.rows(params, "train", base))
    assert [row.values for row in train] == [{"text": "a good film", "label": 1}, {"text": "a dull film", "label": 0}]
    assert train[1].where == "films: split train: row 2"
    assert [row.values["text"] for row in hub.rows(params, "dev", base)] == ["fine"]


def test_its_fingerprint_follows_content_and_choice(base: Path):
    params = hub.Params(dataset="films")
    before = hub.fingerprint(params, base)
    assert hub.fingerprint(params, base) == before
    assert hub.fingerprint(hub.Params(dataset="films", dev="train"), base) != before
    (base / "films" / "train.csv").write_text("text,label\na good film,0\n")
    assert hub.fingerprint(params, base) != before


def test_an_unknown_split_is_one_message(base: Path):
    with pytest.raises(InputError, match=r'data "hub": cannot load test of .*films.*test'):
        list(hub.rows(hub.Params(dataset="films", dev="test"), "dev", base))


def test_a_hub_out_of_reach_is_one_message(tmp_path: Path):
    params = hub.Params(dataset="nobody/nothing")
    for ask in (lambda: list(hub.rows(params, "train", tmp_path)), lambda: hub.fingerprint(params, tmp_path)):
        with pytest.raises(InputError, match=r"nobody/nothing.*check the name") as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_a_commit_is_its_own_fingerprint_without_the_hub(tmp_path: Path):
    commits = [hub.Params(dataset="nobody/nothing", revision=digit * 40) for digit in "ab"]
    assert len({hub.fingerprint(params, tmp_path) for params in commits}) == 2
