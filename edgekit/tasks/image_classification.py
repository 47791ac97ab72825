"""Image classification: one label an image, with a ViT-like model's own resizing and normalisation."""

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from edgekit.errors import InputError
from edgekit.records import Kind, Record, Score, parse
from edgekit.tasks import Arrays, Feature, Predict, Row, _columns, _metrics
from edgekit.tasks.text_classification import likeliest

if TYPE_CHECKING:
    from PIL.Image import Image

KIND: Kind = "image-classification"


class Params(Record):
    """Columns. `image` holds a path, relative to the data file, or an image file's bytes (Parquet, `datasets`).

    Only a data file's own bytes tell edgekit that data changed: an image changed under the same path is not noticed.
    """

    image: str = "image"
    label: str = "label"
    labels: tuple[str | int, ...] | None = None


@dataclass(frozen=True)
class Example:
    """An image file or its bytes, where it was named, and the index of its label."""

    image: Path | bytes
    where: str
    label: int


class _Size(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    height: int
    width: int


class Processor(BaseModel):
    """What `preprocessor_config.json` says, by the names and defaults of transformers' `ViTImageProcessor`."""

    model_config = ConfigDict(frozen=True)
    size: _Size = _Size(height=224, width=224)
    resample: int = 2
    rescale_factor: float = 1 / 255
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    do_resize: bool = True
    do_rescale: bool = True
    do_normalize: bool = True
    do_center_crop: bool | None = None


@dataclass(frozen=True)
class _Pixels(Mapping[str, np.ndarray]):
    """`pixel_values`, made anew at each access: a data set of images does not fit into memory as floats."""

    example: Example
    processor: Processor

    def __getitem__(self, name: str) -> np.ndarray:
        if name != "pixel_values":
            raise KeyError(name)
        return pixels(_open(self.example), self.processor, self.example.where)

    def __iter__(self) -> Iterator[str]:
        return iter(("pixel_values",))

    def __len__(self) -> int:
        return 1


def labels(params: Params, rows: Iterable[Row]) -> tuple[str, ...]:
    """The recipe's labels, or those of the training rows: numbers by value, else in alphabetical order."""
    found = set[str]() if params.labels else {_columns.label(row, params.label) for row in rows}
    return _columns.label_set(params.labels, found, params.label)


def examples(params: Params, rows: Iterable[Row], labels: tuple[str, ...], *, training: bool) -> list[Example]:
    """One `Example` a row; each image file must open."""
    found = [
        Example(
            _image(row, params.image),
            f"{row.where}: column {params.image!r}",
            _columns.label_id(row, params.label, labels),
        )
        for row in rows
    ]
    for example in found:
        _open(example).close()
    return found


def _image(row: Row, column: str) -> Path | bytes:
    value = _columns.cell(row, column)
    if isinstance(value, Mapping):  # the Image feature of `datasets`
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return row.folder / value
    found = type(value).__name__
    raise InputError(f'{row.where}: column "{column}" must hold the path or the bytes of an image, found {found}')


def encoder(params: Params, folder: Path, max_length: int) -> Processor:
    """The processor described by `preprocessor_config.json` in `folder`; `max_length` means nothing here."""
    path = folder / "preprocessor_config.json"
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(
            f"{path}: there is no such file, so images cannot be sized and normalised as the model expects; save it "
            "with ViTImageProcessor.from_pretrained(MODEL).save_pretrained(FOLDER)"
        ) from None
    try:
        value: Any = json.loads(content)
    except ValueError as error:
        raise InputError(f"{path}: is not JSON: {error}") from None
    if isinstance(value, dict) and isinstance(value.get("size"), int):
        value["size"] = {"height": value["size"], "width": value["size"]}  # as old versions wrote it
    processor = parse(Processor, value, path)
    if processor.do_center_crop:
        raise InputError(f'{path}: key "do_center_crop" is true; only processors that resize and no more are known')
    return processor


def pixels(image: "Image", processor: Processor, where: str) -> np.ndarray:
    """float32 [3, height, width], by the same steps and in the same precisions as transformers' `ViTImageProcessor`."""
    from PIL import ImageOps

    try:
        with image:
            rgb = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise _unreadable(where, error) from None
    if processor.do_resize:
        rgb = rgb.resize((processor.size.width, processor.size.height), resample=processor.resample)
    array = np.asarray(rgb)
    if processor.do_rescale:
        array = array.astype(np.float64) * processor.rescale_factor
    array = array.astype(np.float32)
    if processor.do_normalize:
        mean, std = (np.array(value, dtype=np.float32) for value in (processor.image_mean, processor.image_std))
        array = (array - mean) / std
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def _open(example: Example) -> "Image":
    """The image with its header read."""
    from PIL import Image

    source = io.BytesIO(example.image) if isinstance(example.image, bytes) else example.image
    try:
        return Image.open(source)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(example.where, error) from None


def _unreadable(where: str, error: Exception) -> InputError:
    return InputError(f"{where}: cannot be read as an image: {error}")


def features(params: Params, examples: Sequence[Example], labels: tuple[str, ...], encoder: Processor) -> list[Feature]:
    """One feature an image; its pixels are made when asked for."""
    return [
        Feature(_Pixels(example, encoder), index, {"labels": np.array(example.label)})
        for index, example in enumerate(examples)
    ]


def score(
    params: Params,
    examples: Sequence[Example],
    labels: tuple[str, ...],
    features: Sequence[Feature],
    outputs: Sequence[Arrays],
) -> Score:
    """Top-1 accuracy; parts: the other metrics of classification."""
    found = [int(output["logits"].argmax()) for output in outputs]
    return _metrics.classification("accuracy", [example.label for example in examples], found, labels)


def answer(
    params: Params, given: Sequence[str], labels: tuple[str, ...], encoder: Processor, predict: Predict
) -> dict[str, Any]:
    """The likeliest `label` of the image at the given path, and the `probabilities` of all."""
    (path,) = _columns.given_texts(given, ("path of an image",), "image classification")
    (output,) = predict(features(params, [Example(Path(path), path, 0)], labels, encoder))
    return likeliest(output["logits"], labels)
