"""What a recipe asks that cannot be is refused before any work, by the configuration alone: there is no data."""

from pathlib import Path
from typing import Any

import families as tiny
import pytest

from edgekit import recipe as recipes
from edgekit.errors import InputError
from edgekit.pipeline import Planned, TaskData, check
from edgekit.recipe import Recipe


def checked(folder: Path, *steps: dict[str, Any], task: str = "text_classification", teach: Any = None) -> None:
    tiny.make(folder / "model", "bert")
    files = {"name": "files", "train": "none.jsonl", "dev": "none.jsonl"}
    (folder / "text.jsonl").write_text('{"text": "a fox"}\n')
    recipe = Recipe.model_validate({
        "name": "x", "max_length": 32, "task": {"name": task}, "data": files,
        "text": {"data": {"name": "files", "train": "text.jsonl", "dev": "text.jsonl"}},
        "step": [{"stage": "teach", "model": "model", **(teach or {})}, *steps],
    })  # fmt: skip
    missing = [Planned("teach", "teach", recipe.step[0])]
    check.everything(recipe, recipes.target("host"), folder, TaskData(recipe, folder), missing, folder)


def distill(*losses: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {"stage": "distill", "method": {"name": "kd", "losses": losses or [{"name": "kl"}]}, **values}


def student(name: str, **values: Any) -> dict[str, Any]:
    return distill(student={"name": name, **values})


HEADS = {"stage": "prune", "heads": 2}
SMALL = {"layers": 1, "width": 16, "heads": 2}
NO_DATA = "none.jsonl does not exist"
REFUSED: dict[str, tuple[list[dict[str, Any]], str]] = {
    "a ladder that does not divide": ([student("ladder", reduction=5)], "reduction = 5 does not divide"),
    "a pruned ladder": ([student("ladder"), HEADS], 'step prune: the family "edgekit-ladder" is not known'),
    "pruned thin linears": ([student("low_rank", rank=4), HEADS], "step prune: its layers are of low rank"),
    "as many heads as there are": ([student("bert", **SMALL), HEADS], "step prune: heads = 2 takes nothing"),
    "layers of a ladder": (
        [distill({"name": "hidden_mse"}, student={"name": "ladder"})],
        "hidden_mse: reads layers, and a ladder's are its frozen backbone's",
    ),
    "a ladder on plain text": (
        [{"stage": "pretrain", "student": {"name": "ladder"}, "method": {"name": "masked_lm"}}],
        "step pretrain: a ladder's hidden states are its frozen backbone's",
    ),
    "unlike widths without a projection": (
        [distill({"name": "hidden_mse", "projection": None}, student={"name": "bert", **SMALL})],
        "hidden_mse: the student's states are 16 wide, the teacher's 32; give it projection",
    ),
    "attention that is not there": (
        [{"stage": "distill", "student": {"name": "cnn"}, "method": {"name": "emd"}}],
        "emd: this student has no attention to compare; set attention = 0",
    ),
    "sub-networks of thin linears": (
        [student("low_rank", rank=4), {"stage": "distill", "method": {"name": "dynabert"}}],
        "dynabert: the model's layers are of low rank",
    ),
    "two teachers for one": ([distill(teachers=["model"])], "kd takes one teacher, and teachers names more"),
    "one teacher for two": (
        [{"stage": "distill", "method": {"name": "multi_teacher", "losses": [{"name": "kl"}]}}],
        "multi_teacher takes two teachers or more; name further ones in teachers",
    ),
    "a language model that nothing trained": (
        [{"stage": "pretrain", "layers": 1, "method": {"name": "distilbert"}}],
        "distilbert learns from the teacher's masked-LM head, and it has none; put a pretrain step",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused(what: str, tmp_path: Path) -> None:
    steps, message = REFUSED[what]
    with pytest.raises(InputError, match=message):
        checked(tmp_path, *steps)


@pytest.mark.parametrize(
    "steps",
    [
        [student("cnn"), distill()],
        [student("bigru"), distill({"name": "kl"}, {"name": "cross_entropy"})],
        [student("ladder"), distill()],
        [{"stage": "pretrain", "method": {"name": "masked_lm"}},
         {"stage": "pretrain", "layers": 1, "method": {"name": "distilbert"}}, distill()],
        [distill({"name": "hidden_mse", "projection": "auto"}, student={"name": "bert", **SMALL})],
    ],
)  # fmt: skip
def test_it_is_taken(steps: list[dict[str, Any]], tmp_path: Path) -> None:
    """Up to the data."""
    with pytest.raises(InputError, match=NO_DATA):
        checked(tmp_path, *steps)


@pytest.mark.parametrize(
    ("step", "teach"),
    [
        (distill({"name": "cross_entropy"}), None),
        (distill({"name": "kl", "probability_shift": True}), None),
        (distill({"name": "output_mse", "mask": "labels"}), None),
        ({"stage": "distill", "method": {"name": "supervised"}}, None),
        (distill({"name": "output_mse"}), {"training": {}}),
    ],
)
def test_a_task_without_labels_has_none_to_learn_from(step: dict[str, Any], teach: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sentence_embedding has (none; take output_mse|no labels to train on)"):
        checked(tmp_path, step, task="sentence_embedding", teach=teach)
    (tmp_path / "fine").mkdir()
    with pytest.raises(InputError, match=NO_DATA):
        checked(tmp_path / "fine", distill({"name": "output_mse"}), task="sentence_embedding")
