"""The Python sample of a bundle: run as it stands, where edgekit cannot be imported, against `edgekit run`."""

import json
import subprocess
import sys
from pathlib import Path

import bundles
import pytest

from edgekit.run import answer

GIVEN = {
    "text-classification": ["a good film with a great cast"],
    "token-classification": ["the quick brown fox jumps over the lazy dog"],
    "question-answering": ["who wrote", "the quick brown fox jumps over the lazy dog"],
    "sentence-embedding": ["a good film"],
    "image-classification": ["cat.png"],
}
CASES = [
    ("bert", "token-classification", ("onnx", "tflite")),
    ("roberta", "token-classification", ("onnx",)),
    ("distilbert", "text-classification", ("onnx",)),
    ("bert", "question-answering", ("onnx",)),
    ("mpnet", "sentence-embedding", ("onnx",)),
    ("vit", "image-classification", ("onnx",)),
]


def sample(folder: Path, *arguments: str) -> str:
    """What the sample prints; `-c` stands in for an environment without edgekit by making its import fail."""
    script = folder / "samples" / "python" / "run.py"
    code = (
        "import runpy, sys; sys.modules['edgekit'] = None; sys.argv = sys.argv[1:];"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    argv = [sys.executable, "-c", code, str(script), *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("family", "kind", "formats"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_it_says_what_edgekit_says(tmp_path: Path, family: str, kind: str, formats: tuple[str, ...]) -> None:
    folder, _ = bundles.make(tmp_path / "b", family, kind, formats=formats)
    given = [str(tmp_path / "b" / "data" / g) if g.endswith(".png") else g for g in GIVEN[kind]]
    for format in formats:
        want = answer(folder, given, format)
        found = json.loads(sample(folder, *given, "--format", format))
        if kind == "token-classification":
            marks = {"O": "", "COMMA": ",", "PERIOD": ".", "QUESTION": "?"}
            assert [[word, marks[label]] for word, label in found] == [[w["word"], w["mark"]] for w in want["words"]]
        elif kind == "question-answering":
            assert found == want["answer"]
        elif kind == "sentence-embedding":
            assert found == pytest.approx(want["embeddings"][0], abs=1e-5)
        else:
            assert (found["label"], found["probability"]) == (want["label"], want["probabilities"][want["label"]])
