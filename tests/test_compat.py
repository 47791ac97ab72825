"""A bundle in the environments of those who use it: Optimum, tflite-runtime 2.14, and a host without torch."""

import json
import subprocess
import sys
from pathlib import Path

import bundles
import pytest

COMPAT = Path(__file__).parent.parent / "scripts" / "compat"
CASES = [("bert", "token-classification"), ("roberta", "text-classification"), ("mpnet", "sentence-embedding")]


@pytest.mark.target
@pytest.mark.parametrize(("family", "kind"), CASES)
def test_bundle_works_elsewhere(tmp_path: Path, family: str, kind: str) -> None:
    folder, _ = bundles.make(tmp_path / "b", family, kind)
    done = subprocess.run([sys.executable, COMPAT, folder], capture_output=True, text=True, timeout=3600)
    if done.returncode == 75:
        pytest.skip(f"pip cannot install here: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"good", "run", "optimum", "tflite"}
    assert found["run"]["torch_transformers_onnx"] == "[]"
    assert set(found["run"]["answers"]) == {"onnx", "tflite"}
    assert found["optimum"]["same_ids"] and found["optimum"]["max_abs_diff"] <= 1e-5
    assert found["tflite"]["signatures"] == ["len_16", "len_32"]
