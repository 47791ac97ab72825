"""A tokenizer that any lower-case text fits: some whole words, and every letter for the rest."""

import string
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = (
    "thank",
    "you",
    "mr",
    "speaker",
    "are",
    "ready",
    "the",
    "cat",
    "sat",
    "on",
    "mat",
    "anna",
    "lives",
    "in",
    "new",
)
LETTERS = tuple(string.ascii_lowercase + string.digits + ".,?!'-")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a BERT-like tokenizer.json: "the" is one token, "york" is y ##o ##r ##k."""
    vocabulary = [*SPECIAL, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made = tmp_path_factory.mktemp("model")
    tokenizer.save(str(made / "tokenizer.json"))
    return made
