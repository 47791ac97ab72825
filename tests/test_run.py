"""`edgekit run`: answers from a bundle alone, on both formats."""

import subprocess
import sys
from pathlib import Path

import bundles
import pytest

from edgekit import bundle
from edgekit.errors import InputError
from edgekit.run import answer


@pytest.fixture(scope="module")
def punctuation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundles.make(tmp_path_factory.mktemp("run") / "b", "bert", "token-classification")[0]


def test_both_formats_agree_from_folder_and_zip(punctuation: Path) -> None:
    text = "the quick brown fox jumps over the lazy dog"
    found = answer(punctuation, [text], "onnx")
    assert found == answer(punctuation, [text], "tflite") == answer(bundle.pack(punctuation), [text])
    assert [word["word"] for word in found["words"]] == text.split()
    assert found["text"].translate(str.maketrans("", "", ",.?")) == text


def test_long_text_loses_no_word(punctuation: Path) -> None:
    text = "the quick brown fox jumps over the lazy dog " * 30  # 270 words, the model takes 32 tokens
    for format in ("onnx", "tflite"):
        assert [word["word"] for word in answer(punctuation, [text], format)["words"]] == text.split()


@pytest.mark.parametrize("given", [[], ["a", "b"], [" "]])
def test_wrong_texts(punctuation: Path, given: list[str]) -> None:
    with pytest.raises(InputError):
        answer(punctuation, given)


def test_each_line_of_standard_input_is_answered(punctuation: Path) -> None:
    lines = ["the quick brown fox", "the lazy dog"]
    argv = [sys.executable, "-m", "edgekit", "run", str(punctuation)]
    done = subprocess.run(argv, input="\n".join(lines) + "\n\n", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [answer(punctuation, [line])["text"] for line in lines]


def test_a_changed_bundle_is_not_run(punctuation: Path, tmp_path: Path) -> None:
    path = bundle.pack(punctuation)
    broken = tmp_path / "broken.zip"
    broken.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="whole zip"):
        answer(broken, ["the dog"])


def test_no_torch_is_imported(punctuation: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from edgekit.run import answer;"
        "print(answer(Path(sys.argv[1]), ['the dog'])['text'] != '', {'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, punctuation], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "True set()"), done.stderr
