"""Hugging Face models in folders: load, save, run. Safetensors only; nothing is unpickled, no remote code runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from edgekit.errors import InputError
from edgekit.records import Kind
from edgekit.tasks import OUTPUTS, Arrays, Feature, Predict, pad

_HEADS = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "sentence-embedding": "AutoModel",
    "image-classification": "AutoModelForImageClassification",
}


def load(folder: Path, kind: Kind, labels: Sequence[str] = ()) -> PreTrainedModel:
    """The model in `folder` with the head of `kind`, in float32 and eval mode, on the CPU.

    With `labels`, the head gets one output a label (a new head is initialised where the folder has none of that
    size). Raises `InputError` where the folder holds no safetensors weights or a family that cannot be built.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: has no config.json, so it is not a Hugging Face model folder")
    if not list(folder.glob("*.safetensors")):
        found = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise InputError(
            f"{folder}: has no model.safetensors (found: {found}); pickled weights are never loaded, convert them "
            "with save_pretrained(..., safe_serialization=True)"
        )
    config = AutoConfig.from_pretrained(folder)
    given: dict[str, Any] = {"dtype": torch.float32}
    if labels:
        names = dict(enumerate(labels))
        given |= {"id2label": names, "label2id": {v: k for k, v in names.items()}, "num_labels": len(names)}
        given["ignore_mismatched_sizes"] = list((config.id2label or {}).values()) != list(labels)
    model = getattr(transformers, _HEADS[kind]).from_pretrained(folder, **given)
    return model.eval()


def save(model: PreTrainedModel, folder: Path) -> None:
    """Write config.json and model.safetensors."""
    model.save_pretrained(folder)


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
                found[i] = {n: _unpad(n, o[row], sizes[i], kind) for n, o in zip(exportable.output_names, outputs, strict=True)}
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
