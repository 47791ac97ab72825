"""Hugging Face models in folders: load, save, run. Safetensors only; nothing is unpickled, no remote code runs."""

import importlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from edgekit import infer
from edgekit.errors import InputError
from edgekit.pipeline import families, processes
from edgekit.records import Kind
from edgekit.tasks import OUTPUTS, Arrays, Predict

_HEADS = {
    "text-classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "token-classification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
    "question-answering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING",
    "sentence-embedding": "MODEL_MAPPING",
    "image-classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
}
_OWN: dict[Any, str] = {
    "edgekit-ladder": "edgekit.pipeline.ladders", "edgekit-sequence": "edgekit.pipeline.sequences",
}  # fmt: skip
"""Families that are not transformers', by the model type in their config.json: the module with their `Config` and
`model_class`. It is imported when there is such a model."""
VOCABULARY_FILES = (
    "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "spm.model",
    "sentencepiece.bpe.model",
)  # fmt: skip
"""What slow tokenizers read; tokenizer.json says the same."""
_PROCESSOR_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "preprocessor_config.json",
    "processor_config.json",
)  # fmt: skip


def load(folder: Path, kind: Kind, labels: Sequence[str] = (), *, new_head: bool = False) -> PreTrainedModel:
    """The model in `folder` with the head of `kind`, in float32 and eval mode, on the CPU.

    With `labels`, the head has one output a label; with `new_head`, one is initialised at random where the folder has
    none of that size, which is else an `InputError`. Heads that config.json says are pruned are not built. Raises
    `InputError` where the folder holds no safetensors weights, weights that do not fill the encoder, or a family that
    cannot be built.
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
        config = configuration(folder)
        if labels:
            _set_labels(config, labels, folder)
        loaded: Any = task_class(config, kind, folder).from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True,
            ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
    except (OSError, ValueError, StrictDataclassError) as error:
        raise InputError(f"{folder / 'config.json'}: no model can be built from it: {_short(error)}") from None
    except SafetensorError as error:
        raise InputError(f"{folder}: the weights are not a whole safetensors file: {_short(error)}") from None
    model, info = loaded
    _check_whole(model, info, folder, new_head)
    return _without_pooler(model, kind).eval()


def configuration(folder: Path) -> PreTrainedConfig:
    """config.json, also of the families that are edgekit's own. Raises `OSError` or `ValueError` where it is none."""
    try:
        content: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        content = None  # transformers says what is wrong with it
    own = _OWN.get(content.get("model_type")) if isinstance(content, dict) else None
    if own is None:
        return AutoConfig.from_pretrained(folder)
    return importlib.import_module(own).Config.from_pretrained(folder)


def new(config: PreTrainedConfig, kind: Kind) -> PreTrainedModel:
    """A model with random weights, with the head of `kind` and the labels of `config`, in eval mode."""
    model: Any = task_class(config, kind)(config)
    return _without_pooler(model, kind).eval()


def _without_pooler(model: Any, kind: Kind) -> PreTrainedModel:
    if kind == "sentence-embedding" and hasattr(model, "pooler"):
        model.pooler = None  # an embedding is the mean of the tokens
    return model


def _set_labels(config: PreTrainedConfig, labels: Sequence[str], folder: Path) -> None:
    has = [label for _, label in sorted((config.id2label or {}).items())]
    if sorted(has) == sorted(labels) and has != list(labels):
        raise InputError(
            f"{folder / 'config.json'}: the model's labels are {has} and the task's {list(labels)}, in another order; "
            "give the task the labels in the model's order"
        )
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}


def task_class(config: PreTrainedConfig, kind: Kind, folder: Path = Path()) -> type[PreTrainedModel]:
    """The class with the head of `kind`; an `InputError` that names `folder` where the family has none."""
    if config.model_type in _OWN:
        return importlib.import_module(_OWN[config.model_type]).model_class(kind, config)
    known = getattr(transformers, _HEADS[kind])
    if type(config) not in known:
        raise InputError(f'{folder / "config.json"}: the family "{config.model_type}" has no model for {kind}')
    return families.pruned(known[type(config)], config)


def class_name(family: str, kind: Kind) -> str:
    """What a class of edgekit's own is called in config.json, as transformers calls its own.

    >>> class_name("Ladder", "text-classification")
    'LadderForTextClassification'
    """
    return f"{family}For{kind.title().replace('-', '')}"


def named_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that config.json names, for a folder whose task is not known; the encoder where it names none. Raises
    `ValueError` where there is no such class."""
    name = (config.architectures or [""])[0]
    if config.model_type in _OWN:
        kinds: dict[str, Kind] = {class_name(name.partition("For")[0], kind): kind for kind in get_args(Kind)}
        if name not in kinds:
            raise ValueError(f'no model of the family "{config.model_type}" is called "{name}"')
        return task_class(config, kinds[name])
    found: Any = getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        if type(config) not in transformers.MODEL_MAPPING:
            raise ValueError(f'the family "{config.model_type}" has no model')
        found = transformers.MODEL_MAPPING[type(config)]
    return families.pruned(found, config)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _check_whole(model: PreTrainedModel, info: dict[str, Any], folder: Path, new_head: bool) -> None:
    """Refuse weights that leave a part at its random start: the encoder, and the head unless it may be new."""
    inside = "" if model.base_model is model else f"{model.base_model_prefix}."
    wrong = [f"{key} is missing" for key in info["missing_keys"]]
    wrong += [f"{key} is {[*there]}, not {[*wanted]}" for key, there, wanted in info["mismatched_keys"]]
    head = sorted(each for each in wrong if not each.startswith(inside))
    wrong = sorted(each for each in wrong if each.startswith(inside) and not each.startswith(f"{inside}pooler."))
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise InputError(f"{folder}: the weights do not fit config.json: {wrong[0]}{more}")
    if head and not new_head:
        raise InputError(
            f"{folder}: has no trained head for this task and its labels ({head[0]}); give the teach step a training "
            "table, or name a teacher that was fine-tuned for the task"
        )


def save(model: PreTrainedModel, folder: Path) -> None:
    """Write config.json and model.safetensors."""
    saved: Any = model
    if processes.rank():  # transformers lets no process but 0 write, and this one has a folder of its own
        saved.should_save_on_this_rank = lambda is_main_process: True
    saved.save_pretrained(folder)
    vars(saved).pop("should_save_on_this_rank", None)


def copy_processor(source: Path, out: Path) -> None:
    """Copy what turns raw input into the model's: the tokenizer's or image processor's files."""
    for name in (*_PROCESSOR_FILES, *VOCABULARY_FILES):
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)


def input_names(model: PreTrainedModel) -> tuple[str, ...]:
    """What the model takes, in the order that files are exported with."""
    if model.main_input_name == "pixel_values":
        return ("pixel_values",)
    segments = getattr(model.config, "type_vocab_size", 0) > 1
    return ("input_ids", "attention_mask", *(("token_type_ids",) if segments else ()))


def pad_id(model: PreTrainedModel) -> int:
    """The token id that fills up shorter sequences; 0 where the model has none (it is masked anyway)."""
    return getattr(model.config, "pad_token_id", None) or 0


class Exportable(torch.nn.Module):
    """A model with nothing but named tensors in and out, as files are made from it.

    `input_names` is what it takes; `output_names` what `forward` gives: the names in `OUTPUTS`, and for sentence
    embeddings the token states first, by which Optimum and sentence-transformers know such a file.
    """

    def __init__(self, model: PreTrainedModel, kind: Kind) -> None:
        super().__init__()
        self.model = model
        self.kind: Kind = kind
        self.input_names = input_names(model)
        self.output_names = (*(("last_hidden_state",) if kind == "sentence-embedding" else ()), *OUTPUTS[kind])

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Outputs by name. The mask is made additive here, outside attention: what transformers makes of a
        [batch, length] mask needs operators that TFLite runtimes in the field do not have.
        """
        named = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "pixel_values": pixel_values,
        }
        given = {name: tensor for name, tensor in named.items() if tensor is not None}
        found = self.model(**(given | self._additive(attention_mask)))
        return {name: {**found, **self.outputs(found, given)}[name] for name in self.output_names}

    def _additive(self, mask: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """[batch, 1, 1, length], 0 where a token is real; what multiplies by its mask takes it as it is: DeBERTa-v2
        and models without attention.
        """
        family = families.name(self.model.config)
        if mask is None or family == "deberta-v2" or family not in families.FAMILIES:
            return {}
        return {"attention_mask": (1.0 - mask[:, None, None, :].float()) * -1e4}

    def with_hidden(self, *inputs: torch.Tensor) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, ...]]:
        """The names in `OUTPUTS`, and the hidden states: embeddings, then each layer, [batch, length, width] each.

        `inputs` in the order of `input_names`.
        """
        named = dict(zip(self.input_names, inputs, strict=True))
        found = self.model(**named, output_hidden_states=True)
        return self.outputs(found, named), found.hidden_states

    def outputs(self, found: Any, named: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The names in `OUTPUTS`: the head's logits, or the L2-normalised mean of the unpadded token states."""
        if self.kind != "sentence-embedding":
            return {name: found[name] for name in OUTPUTS[self.kind]}
        mask = named["attention_mask"].unsqueeze(-1).to(found.last_hidden_state.dtype)
        mean = (found.last_hidden_state * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return {"sentence_embedding": torch.nn.functional.normalize(mean, dim=-1)}


def runner(model: PreTrainedModel, kind: Kind) -> Callable[[Arrays], Arrays]:
    """`model` as a function from a padded batch to the names in `OUTPUTS`, by transformers' own forward."""
    exportable = Exportable(model, kind).eval()

    @torch.inference_mode()
    def run(batch: Arrays) -> Arrays:
        named = {name: torch.from_numpy(batch[name]).to(model.device) for name in exportable.input_names}
        outputs = exportable.outputs(model(**named), named)
        return {name: output.float().cpu().numpy() for name, output in outputs.items()}

    return run


def predictor(model: PreTrainedModel, kind: Kind, batch_size: int = 32) -> Predict:
    """`model` as a function from features to unpadded outputs; sequences of like length share a batch."""
    return infer.predictor(runner(model, kind), kind, pad_id(model), batch_size)


def parameters(model: torch.nn.Module) -> int:
    """The number of distinct weights; tied ones count once."""
    return sum(p.numel() for p in model.parameters())


def weight_bytes(folder: Path) -> int:
    """Bytes of the safetensors files in `folder`."""
    return sum(p.stat().st_size for p in folder.glob("*.safetensors"))
