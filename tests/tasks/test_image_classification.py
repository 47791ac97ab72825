import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgekit.errors import InputError
from edgekit.tasks import Arrays, Feature, Row
from edgekit.tasks import image_classification as task
from edgekit.tasks.image_classification import Example, Params


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width)
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8), mode)


def processor(folder: Path, **keys: Any) -> Path:
    content = {"size": {"height": 30, "width": 20}, "image_processor_type": "ViTImageProcessor"} | keys
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"resample": 3, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
        {"do_normalize": False},
        {"do_resize": False, "rescale_factor": 1 / 127.5},
        {"do_rescale": False},
    ],
)
def test_pixels_are_those_of_transformers(tmp_path: Path, keys: dict[str, Any]):
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    folder = processor(tmp_path, **keys)
    picture(64, 48).save(tmp_path / "a.png")
    encoder = task.encoder(Params(), folder, 0)
    (feature,) = task.features(Params(), [Example(tmp_path / "a.png", "a.png", 0)], ("x", "y"), encoder)
    reference = ViTImageProcessorPil.from_pretrained(folder)(Image.open(tmp_path / "a.png"))["pixel_values"][0]
    found = feature.inputs["pixel_values"]
    assert found.dtype == np.float32
    assert np.array_equal(found, np.asarray(reference, dtype=np.float32))


def test_old_sizes_grey_and_rotated_images(tmp_path: Path):
    encoder = task.encoder(Params(), processor(tmp_path, size=16), 0)
    grey = io.BytesIO()
    picture(10, 10, "L").save(grey, "PNG")
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    plain = picture(16, 16)
    plain.save(turned, "PNG", exif=exif)
    features = task.features(
        Params(), [Example(grey.getvalue(), "a", 0), Example(turned.getvalue(), "b", 0)], ("x", "y"), encoder
    )
    assert features[0].inputs["pixel_values"].shape == (3, 16, 16)
    upright = np.asarray(plain.rotate(-90)).transpose(2, 0, 1) / 255
    assert np.allclose(features[1].inputs["pixel_values"], upright / 0.5 - 1, atol=1e-5)


def test_paths_start_at_the_data_file_and_bytes_may_stand_in_the_row(tmp_path: Path):
    (tmp_path / "images").mkdir()
    picture(8, 8).save(tmp_path / "images" / "a.jpg")
    content = (tmp_path / "images" / "a.jpg").read_bytes()
    rows = [
        Row("f: row 1", {"image": "images/a.jpg", "label": "x"}, tmp_path),
        Row("f: row 2", {"image": content, "label": "y"}, tmp_path),
        Row("f: row 3", {"image": {"bytes": content, "path": None}, "label": "x"}, tmp_path),
        Row("f: row 4", {"image": {"bytes": None, "path": "images/a.jpg"}, "label": "x"}, tmp_path),
    ]
    examples = task.examples(Params(), rows, ("x", "y"), training=True)
    features = task.features(Params(), examples, ("x", "y"), task.encoder(Params(), processor(tmp_path), 0))
    pixels = [feature.inputs["pixel_values"] for feature in features]
    assert all(np.array_equal(pixels[0], other) for other in pixels)
    assert [int(feature.labels["labels"]) for feature in features] == [0, 1, 0, 0]


@pytest.mark.parametrize("image", ["gone.png", "text.png", b"no image", {"bytes": None, "path": None}, 7, ""])
def test_a_bad_image_names_row_and_column(tmp_path: Path, image: object):
    (tmp_path / "text.png").write_text("no image")
    row = Row("dev.csv: row 4", {"image": image, "label": "x"}, tmp_path)
    with pytest.raises(InputError, match=r"dev\.csv: row 4: column .image."):
        task.examples(Params(), [row], ("x", "y"), training=True)


def test_a_cut_off_image_is_an_input_error(tmp_path: Path):
    content = io.BytesIO()
    picture(64, 64).save(content, "PNG")
    row = Row("dev.csv: row 4", {"image": content.getvalue()[:2000], "label": "x"})
    examples = task.examples(Params(), [row], ("x", "y"), training=True)
    (feature,) = task.features(Params(), examples, ("x", "y"), task.encoder(Params(), processor(tmp_path), 0))
    with pytest.raises(InputError, match=r"row 4.*cannot be read as an image"):
        _ = feature.inputs["pixel_values"]


def test_a_processor_must_be_one_that_only_resizes(tmp_path: Path):
    with pytest.raises(InputError, match=r"preprocessor_config\.json: there is no such file"):
        task.encoder(Params(), tmp_path, 0)
    with pytest.raises(InputError, match="do_center_crop"):
        task.encoder(Params(), processor(tmp_path, do_center_crop=True), 0)
    with pytest.raises(InputError, match="shortest_edge"):
        task.encoder(Params(), processor(tmp_path, size={"shortest_edge": 224}), 0)


def test_top_1_and_answer(tmp_path: Path):
    examples = [Example(b"", "", i) for i in (0, 1, 1, 0)]
    outputs = [{"logits": np.eye(2)[i]} for i in (0, 1, 0, 0)]
    score = task.score(Params(), examples, ("cat", "dog"), [], outputs)
    assert (score.metric, score.value) == ("accuracy", 0.75)

    def predict(features: Sequence[Feature]) -> list[Arrays]:
        return [{"logits": np.array([f.inputs["pixel_values"].mean(), 0.0])} for f in features]

    Image.new("RGB", (5, 5), "white").save(tmp_path / "white.png")
    encoder = task.encoder(Params(), processor(tmp_path), 0)
    assert task.answer(Params(), [str(tmp_path / "white.png")], ("cat", "dog"), encoder, predict)["label"] == "cat"
