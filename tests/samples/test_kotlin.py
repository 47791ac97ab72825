"""The Kotlin samples: compiled, the tokenizer against Python's ids, the calls against stand-ins for the runtimes."""

import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

pytestmark = pytest.mark.target
HERE = Path(__file__).parent
SAMPLES = HERE.parent.parent / "edgekit" / "samples" / "kotlin"
JSON_JAR = Path("/usr/share/java/com.android.json.jar")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "fox", "##es", "un", "##like", "##ly", "cafe", "é", "i",
         "##\u0307", "σ", "##ς", "##σ", "ß", "中", "文", "a", "##b", "b", ",", ".", "'", "$", "\u2019", "\U0001d41a",
         "###"]  # fmt: skip
TEXTS = [
    ["The foxes, unlikely."], ["café CAFÉ cafe\u0301"], ["中文a中b"], ["a\tb\nb\u00a0a\u3000b"],
    ["a\x0bb a\x00b a\x85b a\u200bb"],
    ["İ i\u0307 Σσς ΑΣ"], ["don't $b #b b\u2019b"], ["\U0001d41a \U0001f600 a"], ["a" * 100 + " " + "ab" * 51],
    [""], ["  "],
    ["b " * 40], ["the fox", "unlikely b"], ["the fox", "b " * 40], ["[SEP"],
]  # fmt: skip


@pytest.fixture(scope="module")
def jar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("kotlinc") or not JSON_JAR.is_file():
        pytest.skip("no Kotlin compiler and org.json here: apt install kotlin libandroid-json-java")
    path = tmp_path_factory.mktemp("kotlin") / "samples.jar"
    sources = [*map(str, sorted(SAMPLES.glob("*.kt"))), *map(str, sorted(HERE.glob("*.kt")))]
    argv = ["kotlinc", "-nowarn", "-cp", str(JSON_JAR), *sources, "-d", str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return path


def kotlin(jar: Path, *args: str) -> str:
    argv = ["kotlin", "-cp", f"{jar}:{JSON_JAR}", "MainKt", *args]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def tokenizer(lowercase: bool, strip_accents: bool | None, template: bool) -> Tokenizer:
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(WORDS))}
    found = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    found.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(name, vocabulary[name]) for name in ("[SEP]", "[CLS]")]
    if template:
        found.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] [SEP] $B:1 [SEP]:1", special_tokens=ends
        )
    else:
        found.post_processor = processors.BertProcessing(*ends)
    return found


@pytest.mark.parametrize(
    ("lowercase", "strip_accents", "template"), [(True, None, True), (False, None, False), (True, False, True)]
)
def test_word_piece_gives_pythons_ids(
    jar: Path, tmp_path: Path, lowercase: bool, strip_accents: bool | None, template: bool
) -> None:
    source = tokenizer(lowercase, strip_accents, template)
    source.save(str(tmp_path / "tokenizer.json"))
    rng = random.Random(0)
    letters = "abABéÉü,.'$#-_ \t\n中文ßΣİ\u00a0\u0301\u200b\u2019\U0001f600"
    fuzz = [["".join(rng.choices(letters, k=rng.randrange(60)))] for _ in range(300)]
    texts = TEXTS + fuzz
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    found = json.loads(kotlin(jar, "ids", str(tmp_path / "tokenizer.json"), "24", str(tmp_path / "texts.json")))
    source.enable_truncation(24, strategy="only_second")
    single = Tokenizer.from_str(source.to_str())
    single.enable_truncation(24)
    for given, got in zip(texts, found, strict=True):
        want = (single if len(given) == 1 else source).encode(*given)
        assert (got["ids"], got["types"]) == (want.ids, want.type_ids), given
        assert got["texts"] == [-1 if s is None else s for s in want.sequence_ids], given


def test_words_are_those_of_pythons_split(jar: Path, tmp_path: Path) -> None:
    source = tokenizer(True, None, True)
    source.save(str(tmp_path / "tokenizer.json"))
    text = "the foxes, unlikely  café"
    (tmp_path / "texts.json").write_text(json.dumps([[text]]))
    (found,) = json.loads(kotlin(jar, "ids", str(tmp_path / "tokenizer.json"), "24", str(tmp_path / "texts.json")))
    want = source.encode(text.split(), is_pretokenized=True)
    assert found["words"] == [-1 if word is None else word for word in want.word_ids]
    assert found["ids"] == want.ids


def test_calls_pad_pick_the_signature_and_decode(jar: Path, tmp_path: Path) -> None:
    formats = [{"format": name, "path": f"{name}/model.{name}"} for name in ("tflite", "onnx")]
    target = {"runtime": {"threads": 3}}
    manifest = {
        "target": target,
        "models": formats,
        "max_length": 16,
        "pad_id": 9,
        "labels": ["a", "b"],
        "encoder": "onnx",
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert kotlin(jar, "run", str(tmp_path)).splitlines() == [
        "litert len_8 [5, 0, 3, -2, 7, 9, 9, 9]",  # the smaller of 16 and 8, filled with pad_id
        "[a, b]",  # of each word its first token's: id 0 < 1, id 3 > 1
        "litert closed",
        "onnx [1, 5]",
        "[a, b]",
        "onnx closed",
        "(1, 2)",  # the best start and end in the context: 3 + 2
        "[1, 3, 1, 2][0.0, 3.0, 0.0, 1.5, 0.0, 0.75]",  # by channel: (value / 2 - mean) / std
    ]
