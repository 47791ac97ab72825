"""Hugging Face models in folders: load, save, run. Safetensors only; nothing is unpickled, no remote code runs."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from edgekit.errors import InputError
from edgekit.pipeline import families
from edgekit.records import Kind
from edgekit.tasks import OUTPUTS, Arrays, Feature, Predict, pad

_HEADS = {
    "text-classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "token-classification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
    "question-answering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING",
    "sentence-embedding": "MODEL_MAPPING",
    "image-classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
}
TOKENIZER_FILES = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt",
    "spiece.model", "spm.model", "sentencepiece.bpe.model",
)  # fmt: skip
"""What may stand beside tokenizer.json."""


def load(folder: Path, kind: Kind, labels: Sequence[str] = ()) -> PreTrainedModel:
    """The model in `folder` with the head of `kind`, in float32 and eval mode, on the CPU.

    With `labels`, the head gets one output a label (a new head is initialised where the folder has none of that
    size). Heads that config.json says are pruned are not built. Raises `InputError` where the folder holds no
    safetensors weights, weights that do not fill the encoder, or a family that cannot be built.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: has no config.json, so it is not a Hugging Face model folder")
    if not list(folder.glob("*.safetensors")):
        found = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise InputError(
            f"{folder}: has no model.safetensors (found: {found}); pickled weights are never loaded, convert them "
            "with save_pretrained(..., safe_serialization=True)"
        )
    try:
        config = AutoConfig.from_pretrained(folder)
        if labels:
            _set_labels(config, labels, folder)
        loaded: Any = _class(config, kind, folder).from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True,
            ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
    except (OSError, ValueError, StrictDataclassError) as error:
        raise InputError(f"{folder / 'config.json'}: no model can be built from it: {_short(error)}") from None
    except SafetensorError as error:
        raise InputError(f"{folder}: the weights are not a whole safetensors file: {_short(error)}") from None
    model, info = loaded
    _check_whole(model, info, folder)
    if kind == "sentence-embedding" and hasattr(model, "pooler"):
        model.pooler = None  # an embedding is the mean of the tokens
    return model.eval()


def _set_labels(config: PreTrainedConfig, labels: Sequence[str], folder: Path) -> None:
    has = [label for _, label in sorted((config.id2label or {}).items())]
    if sorted(has) == sorted(labels) and has != list(labels):
        raise InputError(
            f"{folder / 'config.json'}: the model's labels are {has} and the task's {list(labels)}, in another order; "
            "give the task the labels in the model's order"
        )
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}


def _class(config: PreTrainedConfig, kind: Kind, folder: Path) -> type[PreTrainedModel]:
    known = getattr(transformers, _HEADS[kind])
    if type(config) not in known:
        raise InputError(f'{folder / "config.json"}: the family "{config.model_type}" has no model for {kind}')
    return families.pruned(known[type(config)], config)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _check_whole(model: PreTrainedModel, info: dict[str, Any], folder: Path) -> None:
    """Refuse weights that leave a part of the encoder at its random start; only a head or pooler may be new."""
    inside = "" if model.base_model is model else f"{model.base_model_prefix}."
    wrong = [f"{key} is missing" for key in info["missing_keys"]]
    wrong += [f"{key} is {[*there]}, not {[*wanted]}" for key, there, wanted in info["mismatched_keys"]]
    wrong = sorted(each for each in wrong if each.startswith(inside) and not each.startswith(f"{inside}pooler."))
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise InputError(f"{folder}: the weights do not fit config.json: {wrong[0]}{more}")


def save(model: PreTrainedModel, folder: Path) -> None:
    """Write config.json and model.safetensors."""
    model.save_pretrained(folder)


def copy_processor(source: Path, out: Path) -> None:
    """Copy what turns raw input into the model's: the tokenizer's or image processor's files."""
    for name in (*TOKENIZER_FILES, "tokenizer.json", "preprocessor_config.json", "processor_config.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)


def input_names(model: PreTrainedModel) -> tuple[str, ...]:
    """What the model takes, in the order that files are exported with."""
    if model.config.model_type == "vit":
        return ("pixel_values",)
    segments = getattr(model.config, "type_vocab_size", 0) > 1
    return ("input_ids", "attention_mask", *(("token_type_ids",) if segments else ()))


def pad_id(model: PreTrainedModel) -> int:
    """The token id that fills up shorter sequences; 0 where the model has none (it is masked anyway)."""
    return getattr(model.config, "pad_token_id", None) or 0


class Exportable(torch.nn.Module):
    """A model with nothing but tensors in and out: `input_names` in order to a tuple in the order of `output_names`."""

    def __init__(self, model: PreTrainedModel, kind: Kind) -> None:
        super().__init__()
        self.model = model
        self.kind = kind
        self.input_names = input_names(model)
        self.output_names = OUTPUTS[kind]

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Outputs by `OUTPUTS`: the head's logits, or the L2-normalised mean of the unpadded token states."""
        named = dict(zip(self.input_names, inputs, strict=True))
        return self._outputs(self.model(**named), named)

    def with_hidden(self, *inputs: torch.Tensor) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, ...]]:
        """The same by name, and the hidden states: embeddings, then each layer, [batch, length, width] each."""
        named = dict(zip(self.input_names, inputs, strict=True))
        found = self.model(**named, output_hidden_states=True)
        return dict(zip(self.output_names, self._outputs(found, named), strict=True)), found.hidden_states

    def _outputs(self, found: Any, named: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        if self.kind != "sentence-embedding":
            return tuple(found[name] for name in self.output_names)
        mask = named["attention_mask"].unsqueeze(-1).to(found.last_hidden_state.dtype)
        mean = (found.last_hidden_state * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return (torch.nn.functional.normalize(mean, dim=-1),)


def predictor(model: PreTrainedModel, kind: Kind, batch_size: int = 32) -> Predict:
    """`model` as a function from features to unpadded outputs; sequences of like length share a batch."""
    exportable = Exportable(model, kind).eval()
    padding = pad_id(model)

    @torch.inference_mode()
    def predict(features: Sequence[Feature]) -> list[Arrays]:
        found: list[Arrays] = [{}] * len(features)
        sizes = [len(next(iter(feature.inputs.values()))) for feature in features]
        order = sorted(range(len(features)), key=sizes.__getitem__)
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            batch = pad([features[i] for i in part], padding)
            tensors = [torch.from_numpy(batch[name]).to(model.device) for name in exportable.input_names]
            outputs = [output.float().cpu().numpy() for output in exportable(*tensors)]
            for row, i in enumerate(part):
                found[i] = {
                    n: _unpad(n, o[row], sizes[i], kind) for n, o in zip(exportable.output_names, outputs, strict=True)
                }
        return found

    return predict


def _unpad(name: str, output: np.ndarray, length: int, kind: Kind) -> np.ndarray:
    """Outputs with one value a token lose those of the padding."""
    per_token = kind in ("token-classification", "question-answering")
    return output[:length] if per_token else output


def parameters(model: torch.nn.Module) -> int:
    """The number of distinct weights; tied ones count once."""
    return sum(p.numel() for p in model.parameters())


def weight_bytes(folder: Path) -> int:
    """Bytes of the safetensors files in `folder`."""
    return sum(p.stat().st_size for p in folder.glob("*.safetensors"))
