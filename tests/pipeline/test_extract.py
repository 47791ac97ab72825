"""The extract stage: what it takes out is what was trained, in every family; what it refuses; through to int8."""

import json
from pathlib import Path
from typing import Any

import lessons
import pytest
import torch
from pydantic import ValidationError
from test_build import TARGET, project
from test_prune import TASKS, job_for, next_job

from edgekit import recipe as recipes
from edgekit.errors import InputError
from edgekit.pipeline import Job, Made, distill, extract, families, models, subnetworks
from edgekit.pipeline.build import build, plan
from edgekit.pipeline.signals import Speaker
from edgekit.recipe import Distill, Extract, Recipe
from edgekit.records import Kind
from edgekit.store import Store

GRID = {"widths": [0.5, 1.0], "depths": [0.5, 1.0]}


def trained(folder: Path, family: str = "bert", kind: Kind = "text-classification") -> Job:
    """A job that extracts from a model that was trained for `GRID`, with a teacher of four layers."""
    job = job_for(folder, family, kind, **{"n_layers" if family == "distilbert" else "num_hidden_layers": 4})
    step = {"method": {"name": "dynabert", **GRID}, "training": {"epochs": 1, "learning_rate": 1e-2}}
    distill.run(Distill.model_validate({"stage": "distill", **step}), job)
    return next_job(job)


@pytest.mark.parametrize(("family", "kind"), [case for case in lessons.CASES if case[1] in TASKS])
def test_it_is_the_sub_network_of_the_training(family: str, kind: Kind, tmp_path: Path) -> None:
    job = trained(tmp_path, family, kind)
    whole = models.load(job.parents["model"].folder, kind, job.data.labels)
    speaker = Speaker(whole, kind)
    network = subnetworks.SubNetwork(speaker, kind, 0.5, 0.5)
    facts = extract.run(Extract(stage="extract", width=0.5, depth=0.5), job)
    small = models.load(job.out, kind, job.data.labels)
    given = lessons.Lesson(speaker, (), lessons.rows(kind), kind, 0)
    rows = lessons.batch(given)
    with torch.no_grad():
        weights, buffers = dict(speaker.named_parameters()), dict(speaker.named_buffers())
        right = network.speak(network.views(weights), buffers, rows, False)
        found = Speaker(small, kind)(rows)
    for name in right.outputs:
        assert torch.equal(found.outputs[name], right.outputs[name])
    config = json.loads((job.out / "config.json").read_text())
    assert "dynabert" not in config and subnetworks.grid(whole.config.to_dict()) == GRID
    assert [layer.heads for layer in families.layers(small)] == [2, 2]
    assert facts.parameters == models.parameters(small) < models.parameters(whole)
    assert facts.bytes == (job.out / "model.safetensors").stat().st_size
    assert facts.score == job.data.score(models.predictor(small, kind), job.out)
    assert facts.changed == "width 0.5, depth 0.5: layers 4 -> 2, heads 4 -> 2, neurons 48 -> 24"


def test_sizes_fall_with_width_and_depth(tmp_path: Path) -> None:
    job = trained(tmp_path)
    sizes: dict[tuple[float, float], int] = {}
    for width in GRID["widths"]:
        for depth in GRID["depths"]:
            out = tmp_path / f"{width}-{depth}"
            out.mkdir()
            work = Job(job.recipe, job.target, job.data, job.parents, out, job.scratch)
            sizes[width, depth] = extract.run(Extract(stage="extract", width=width, depth=depth), work).bytes
    assert "dynabert" not in json.loads((tmp_path / "1.0-1.0" / "config.json").read_text())
    assert sizes[0.5, 0.5] < sizes[1.0, 0.5] < sizes[1.0, 1.0]
    assert sizes[0.5, 0.5] < sizes[0.5, 1.0] < sizes[1.0, 1.0]


def test_what_was_not_trained_is_refused(tmp_path: Path) -> None:
    job = trained(tmp_path)
    with pytest.raises(
        InputError, match=r"width = 0.75, depth = 1 was not trained; these were: width 0.5, 1 with depth 0.5, 1"
    ):
        extract.run(Extract(stage="extract", width=0.75), job)
    plain = Made(job.parents["teacher"].artifact, job.parents["teacher"].folder)
    work = Job(job.recipe, job.target, job.data, {"model": plain}, job.out, job.scratch)
    with pytest.raises(InputError, match="has no sub-networks; put a distill step"):
        extract.run(Extract(stage="extract"), work)
    assert not list(job.out.iterdir())


def steps(*more: dict[str, Any]) -> Recipe:
    return Recipe.model_validate({
        "name": "x", "task": {"name": "text_classification"}, "data": {"name": "files"},
        "step": [{"stage": "teach", "model": "m"}, *more],
    })  # fmt: skip


def test_a_recipe_is_checked_before_any_work() -> None:
    dynamic = {"stage": "distill", "method": {"name": "dynabert", "depths": [1.0]}}
    deeper = {"stage": "distill", "method": {"name": "dynabert", "depths": [0.5, 1.0]}}
    cell = {"stage": "extract", "width": 0.25, "depth": 0.5}
    extract.check(steps(dynamic, deeper, cell).step)
    with pytest.raises(InputError, match=r"recipe: step extract: width = 0.25, depth = 0.5 was not trained"):
        extract.check(steps(dynamic, cell).step)
    narrow = {"stage": "distill", "method": {"name": "dynabert", "widths": [0.5, 1.0]}}
    with pytest.raises(InputError, match=r"these were: width 0.5, 1 with depth 0.5, 1"):
        extract.check(steps(narrow, deeper, cell).step)
    extract.check(steps(cell).step)  # a teacher may have been trained so before
    for wrong in ((dynamic, {"stage": "prune", "heads": 2}, cell), ({"stage": "distill"}, cell)):
        with pytest.raises(
            ValidationError, match='the method "dynabert" trained; put such a distill step right before it'
        ):
            steps(*wrong)
    planned = plan(steps(dynamic, deeper, cell), recipes.target("host"))
    assert dict(planned[3].parents) == {"model": "distill-2"}


STEPS = """
[[step]]
stage = "distill"
training = { epochs = 1, batch_size = 8 }
method = { name = "dynabert", depths = [1.0] }
[[step]]
stage = "distill"
training = { epochs = 1, batch_size = 8 }
method = { name = "dynabert", hidden = 1.0 }
[[step]]
stage = "extract"
width = 0.5
depth = 0.75
"""


@pytest.mark.slow
def test_a_build_to_int8(tmp_path: Path) -> None:
    project(tmp_path)
    text = (tmp_path / "recipe.toml").read_text()
    start, end = text.index('[[step]]\nstage = "distill"'), text.index('[[step]]\nstage = "export"')
    (tmp_path / "recipe.toml").write_text(text[:start] + STEPS + text[end:])
    (tmp_path / "target.toml").write_text(TARGET.replace('["onnx"]', '["onnx", "tflite"]'))
    recipe, base = recipes.find(tmp_path / "recipe.toml")
    built = build(
        recipe, recipes.target(str(tmp_path / "target.toml")), Store(tmp_path / "store"), tmp_path / "out", base
    )
    rows = {row.name: row for row in built.stages}
    assert rows["extract"].changed == "width 0.5, depth 0.75: layers 4 -> 3, heads 4 -> 2, neurons 48 -> 24"
    for format in ("onnx", "tflite"):
        assert rows[f"quantize-{format}"].bytes < rows[f"export-{format}"].bytes
        assert rows[f"quantize-{format}"].score is not None
    assert (tmp_path / "out" / "manifest.json").is_file()
