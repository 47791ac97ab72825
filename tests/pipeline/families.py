"""Tiny models with random weights, one of each family that edgekit takes, with a real tokenizer beside them.

A helper of tests, in no test file: `make(folder, "bert", kind, labels)` writes what a user's teacher folder holds.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, PreTrainedTokenizerFast

TEXTS = (
    "the quick brown fox jumps over the lazy dog",
    "a good film with a great cast and a fine story",
    "a bad film with a poor cast and no story at all",
    "thank you mr speaker and members of congress",
    "who wrote the story of the dog and the fox",
    "my fellow citizens the state of the union is strong",
    "this is good, that is bad. is it strong? it is!",
)
"""What the tokenizers are trained on; text like it has no unknown words."""

TEXT_FAMILIES = ("bert", "distilbert", "electra", "roberta", "albert", "mobilebert", "mpnet", "deberta-v2")
FAMILIES = (*TEXT_FAMILIES, "vit")

_BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_SPECIAL = {  # in the order of their ids
    "roberta": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
    "mpnet": ("<s>", "<pad>", "</s>", "[UNK]", "<mask>"),
    "albert": ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"),
    "deberta-v2": ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"),
}
_SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
_OWN: dict[str, dict[str, Any]] = {
    "bert": {"type_vocab_size": 2},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "electra": {"type_vocab_size": 2, "embedding_size": 16},
    "roberta": {"type_vocab_size": 1, "max_position_embeddings": 66},
    "albert": {"type_vocab_size": 2, "embedding_size": 16, "num_hidden_groups": 1},
    "mobilebert": {
        "type_vocab_size": 2,
        "embedding_size": 16,
        "true_hidden_size": 16,
        "intra_bottleneck_size": 16,
        "num_feedforward_networks": 2,
    },
    "mpnet": {"max_position_embeddings": 66, "relative_attention_num_buckets": 32},
    "deberta-v2": {
        "type_vocab_size": 0,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "position_buckets": 16,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pooler_hidden_size": 32,
    },
    "vit": {"image_size": 32, "patch_size": 8, "num_channels": 3},
}
_HEADS = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "sentence-embedding": "AutoModel",
    "image-classification": "AutoModelForImageClassification",
}


def make(
    folder: Path,
    family: str,
    kind: str = "text-classification",
    labels: Sequence[str] = ("negative", "positive"),
    seed: int = 0,
    **config: Any,
) -> Path:
    """Write a model of `family` with the head of `kind` and its tokenizer (or image processor); `config` overrides."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {**_SHAPE, **_OWN[family]}
    if family == "distilbert":
        values = {k: v for k, v in values.items() if not k.startswith(("hidden_size", "num_", "intermediate"))}
    if kind in ("text-classification", "token-classification", "image-classification"):
        names = dict(enumerate(labels))
        values |= {"id2label": names, "label2id": {v: k for k, v in names.items()}}
    if family == "vit":
        del values["max_position_embeddings"]
        _image_processor(folder)
    else:
        values |= _tokenizer(family, folder)
    torch.manual_seed(seed)
    model = getattr(transformers, _HEADS[kind]).from_config(AutoConfig.for_model(family, **{**values, **config}))
    model.eval().save_pretrained(folder)
    return folder


def _tokenizer(family: str, folder: Path) -> dict[str, int]:
    """Train and save the family's kind of tokenizer; gives what the model's configuration must say of it."""
    special = _SPECIAL.get(family, _BERT)
    cls, sep, pad, unk, mask = (
        next(t for t in special if t in names)
        for names in (("[CLS]", "<s>"), ("[SEP]", "</s>"), ("[PAD]", "<pad>"), ("[UNK]", "<unk>"), ("[MASK]", "<mask>"))
    )
    trainer: trainers.Trainer
    if family == "roberta":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=160, special_tokens=list(special), show_progress=False)
    elif family in ("albert", "deberta-v2"):
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=160, special_tokens=list(special), unk_token=unk, show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token=unk))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=160, special_tokens=list(special), show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    double = f"{sep} {sep}" if family in ("roberta", "mpnet") else sep
    second = 0 if family in ("roberta", "mpnet") else 1
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {double} $B:{second} {sep}:{second}",
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in (cls, sep)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token=cls, sep_token=sep, pad_token=pad, unk_token=unk, mask_token=mask
    ).save_pretrained(folder)
    ids = {name: tokenizer.token_to_id(token) for name, token in (("pad", pad), ("cls", cls), ("sep", sep))}
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "pad_token_id": ids["pad"],
        "bos_token_id": ids["cls"],
        "eos_token_id": ids["sep"],
    }


def _image_processor(folder: Path) -> None:
    config = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": 32, "width": 32},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config, indent=1))
