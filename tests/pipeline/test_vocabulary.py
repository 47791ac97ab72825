"""After the cut, text of the training's tokens is encoded to the same tokens and outputs, and any text still is."""

import json
from collections.abc import Sequence
from pathlib import Path

import families as tiny
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, pre_tokenizers, processors
from tokenizers import models as kinds
from transformers import AutoTokenizer, BertConfig, BertModel

from edgekit.errors import InputError
from edgekit.pipeline import models, vocabulary
from edgekit.tasks import Feature

WORDS = sorted({word for text in tiny.TEXTS for word in text.split()})


def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def features(found: Tokenizer, texts: Sequence[str]) -> list[Feature]:
    return [Feature({"input_ids": np.array(found.encode(text).ids)}, i) for i, text in enumerate(texts)]


@torch.no_grad()
def hidden(model: torch.nn.Module, found: Tokenizer, texts: Sequence[str], pad: int) -> torch.Tensor:
    ids = [found.encode(text).ids for text in texts]
    widest = max(map(len, ids))
    padded = torch.tensor([row + [pad] * (widest - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (widest - len(row)) for row in ids])
    return model(input_ids=padded, attention_mask=mask).logits


@pytest.mark.parametrize("family", tiny.TEXT_FAMILIES)
def test_same_tokens_same_outputs_fewer_rows(family: str, tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "model", family)
    seen = tiny.TEXTS[1:3]
    model, before = models.load(folder, "text-classification"), tokenizer(folder)
    pad = model.config.pad_token_id
    wanted, rows = hidden(model, before, seen, pad), model.config.vocab_size

    keep = vocabulary.kept(folder, model.config, features(before, seen), 1)
    vocabulary.cut(model, folder, keep)
    models.save(model, folder)
    after, again = tokenizer(folder), models.load(folder, "text-classification")
    assert [after.encode(text).tokens for text in seen] == [before.encode(text).tokens for text in seen]
    assert torch.equal(hidden(again, after, seen, again.config.pad_token_id), wanted)
    assert again.get_input_embeddings().weight.shape[0] == again.config.vocab_size == len(keep) < rows
    assert after.get_vocab_size() == len(keep) and set(after.get_vocab().values()) == set(range(len(keep)))
    assert again.config.pad_token_id == pad  # RoBERTa's and MPNet's positions hang on it
    assert again.get_input_embeddings().padding_idx == (None if family in ("vit",) else pad)

    stock = AutoTokenizer.from_pretrained(folder)
    for text in (*tiny.TEXTS, "zebra crossing quizzes!"):
        assert stock(text)["input_ids"] == after.encode(text).ids
        assert len(after.encode(text).ids) > 2
    assert (stock.pad_token_id, stock.cls_token_id, stock.sep_token_id) == (
        again.config.pad_token_id, again.config.bos_token_id, again.config.eos_token_id,
    )  # fmt: skip


@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
def test_any_text_is_still_encoded_and_text_of_seen_words_as_before(
    family: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tiny.make(tmp_path_factory.mktemp("model"), family)
    model, before = models.load(folder, "text-classification"), tokenizer(folder)

    @settings(max_examples=30)
    @given(
        st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join), min_size=1, max_size=4),
        st.text(max_size=20),
    )
    def check(seen: list[str], other: str) -> None:
        keep = vocabulary.kept(folder, model.config, features(before, seen), 1)
        after = cut_copy(folder, keep, tmp_path_factory.mktemp("cut"))
        for text in seen:
            assert after.encode(text).tokens == before.encode(text).tokens
        # the alphabet stays, so what could be spelt still can
        unknown = model_unknown(before)
        assert after.encode(other).tokens.count(unknown) == before.encode(other).tokens.count(unknown)
        assert max(after.encode(other).ids) < len(keep)

    check()


def cut_copy(folder: Path, keep: Sequence[int], out: Path) -> Tokenizer:
    models.copy_processor(folder, out)
    config = BertConfig(vocab_size=200, hidden_size=4, num_attention_heads=1, num_hidden_layers=0, intermediate_size=4)
    vocabulary.cut(BertModel(config), out, keep)
    return tokenizer(out)


def model_unknown(found: Tokenizer) -> str:
    return next((t for t in ("[UNK]", "<unk>") if found.token_to_id(t) is not None), "")


def write(folder: Path, found: Tokenizer, **settings: object) -> Tokenizer:
    found.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return found


def bert(vocab_size: int, **config: object) -> BertModel:
    shape = {"hidden_size": 4, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 4}
    return BertModel(BertConfig(vocab_size=vocab_size, **shape, **config))


def test_bpe_keeps_every_merge_on_the_way_to_a_kept_token(tmp_path: Path) -> None:
    tokens = ["<pad>", "a", "b", "c", "d", "ab", "abc", "abcd", "cd", "bc"]
    found = write(
        tmp_path,
        Tokenizer(
            kinds.BPE(
                vocab={token: i for i, token in enumerate(tokens)},
                merges=[("a", "b"), ("ab", "c"), ("c", "d"), ("abc", "d"), ("b", "c")],
            )
        ),
    )
    found.add_special_tokens(["<pad>"])
    found.save(str(tmp_path / "tokenizer.json"))
    keep = vocabulary.kept(tmp_path, bert(10).config, [Feature({"input_ids": np.array([7])}, 0)], 1)
    assert [tokens[i] for i in keep] == ["<pad>", "a", "b", "c", "d", "ab", "abc", "abcd"]
    vocabulary.cut(bert(10), tmp_path, keep)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    assert spec["model"]["merges"] == [["a", "b"], ["ab", "c"], ["abc", "d"]]
    assert tokenizer(tmp_path).encode("abcdcd").tokens == ["abcd", "c", "d"]


def test_min_count(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path, "bert")
    found, model = tokenizer(folder), models.load(folder, "text-classification")
    rows = features(found, ["good story", "good fox"])
    fox, good = found.token_to_id("fox"), found.token_to_id("good")
    assert good in vocabulary.kept(folder, model.config, rows, 2)
    assert fox in vocabulary.kept(folder, model.config, rows, 1)
    assert fox not in vocabulary.kept(folder, model.config, rows, 2)


def test_ids_are_rewritten_wherever_they_stand(tmp_path: Path) -> None:
    tokens = ["x", "[PAD]", "unused", "[UNK]", "unused2", "[CLS]", "[SEP]", "fox", "##x"]
    found = Tokenizer(kinds.WordPiece(vocab={token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    found.post_processor = processors.Sequence([processors.BertProcessing(("[SEP]", 6), ("[CLS]", 5))])
    found.add_special_tokens(["[PAD]", "[CLS]", "[SEP]"])
    found.add_tokens([AddedToken("<new>")])  # id 9, behind the vocabulary
    found.enable_padding(pad_id=1, pad_token="[PAD]")
    write(tmp_path, found, added_tokens_decoder={"5": {"content": "[CLS]"}, "9": {"content": "<new>"}})
    (tmp_path / "vocab.txt").write_text("\n".join(tokens))

    model = bert(12, pad_token_id=1, cls_token_id=5, sep_token_id=6)  # two rows more than tokens
    table = model.get_input_embeddings().weight.detach().clone()
    keep = vocabulary.kept(tmp_path, model.config, features(found, ["fox"]), 1)
    assert keep == [0, 1, 3, 5, 6, 7, 8, 9]
    vocabulary.cut(model, tmp_path, keep)
    after = tokenizer(tmp_path)
    assert after.encode("fox <new> what").tokens == ["[CLS]", "fox", "<new>", "[UNK]", "[SEP]"]
    assert after.encode("fox <new> what").ids == [3, 5, 7, 2, 4]
    assert after.padding is not None and after.padding["pad_id"] == 1
    assert (model.config.pad_token_id, model.config.cls_token_id, model.config.sep_token_id) == (1, 3, 4)
    assert torch.equal(model.get_input_embeddings().weight, table[keep])
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["added_tokens_decoder"] == {"3": {"content": "[CLS]"}, "7": {"content": "<new>"}}
    assert not (tmp_path / "vocab.txt").exists()


def test_unigram_scores_an_unknown_character_as_before(tmp_path: Path) -> None:
    """An unknown character costs 10 more than the least likely piece, so that piece must stay."""
    pieces = [("<pad>", 0.0), ("<unk>", 0.0), ("a", -2.0), ("aq", -20.0), ("never", -30.0)]
    found = write(tmp_path, Tokenizer(kinds.Unigram(pieces, unk_id=1)))
    keep = vocabulary.kept(tmp_path, bert(5).config, features(found, ["aq"]), 1)
    assert keep == [0, 1, 2, 3, 4]
    vocabulary.cut(bert(5), tmp_path, keep)
    assert tokenizer(tmp_path).encode("aqa").tokens == ["aq", "a"]


def test_what_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    config = bert(10).config
    with pytest.raises(InputError, match=r"has no tokenizer.json, so its vocabulary cannot be cut"):
        vocabulary.kept(tmp_path, config, [], 1)
    found = write(tmp_path, Tokenizer(kinds.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")))
    with pytest.raises(InputError, match="a WordLevel vocabulary cannot be cut"):
        vocabulary.kept(tmp_path, config, features(found, ["a"]), 1)
    tiny.make(tmp_path, "bert")
    with pytest.raises(InputError, match="the model 10 rows"):
        vocabulary.kept(tmp_path, config, features(tokenizer(tmp_path), tiny.TEXTS), 1)
