"""One training by TextBrewer 0.2.1.post1 itself: `python benchmarks/textbrewer_run.py RECIPE SEED`, JSON to stdout.

The recipe gives data, teacher, student and budget; the losses are those of edgekit's method `textbrewer`, said in
TextBrewer's words. Data, the student's start and the score are edgekit's, so that only the training differs: random
batches, padded to the longest, the teacher run in every step. TextBrewer needs hidden states and attention scores
before the softmax of both models; it is handed those that our own losses read.
"""

import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from edgekit import plugins, systems
from edgekit import recipe as recipes
from edgekit.pipeline import Job, Made, TaskData, distill, models, weights
from edgekit.pipeline.losses._params import TRUTH, pairs
from edgekit.pipeline.signals import Signals, Speaker
from edgekit.pipeline.training import Peak
from edgekit.records import Artifact, Facts
from edgekit.tasks import pad

with warnings.catch_warnings():
    warnings.simplefilter("ignore", SyntaxWarning)
    import textbrewer


def configuration(student: Speaker, teacher: Speaker) -> dict[str, Any]:
    """The losses of the method `textbrewer` as TextBrewer's own options."""
    (step,) = systems.find("textbrewer").step
    found: dict[str, Any] = {"kd_loss_weight": 0, "hard_label_weight": 0, "intermediate_matches": []}
    for use in step.values["method"]["losses"]:
        loss, its = plugins.use("losses", recipes.Use.model_validate(use))
        match loss.__name__.rpartition(".")[2]:
            case "kl":  # T^2 times the cross-entropy, but for the teacher's entropy, which has no gradient
                found |= {"temperature": its.temperature, "kd_loss_weight": its.weight * its.temperature**2}
            case "soft_cross_entropy":
                found |= {"temperature": its.temperature, "kd_loss_weight": its.weight}
            case "cross_entropy":
                found["hard_label_weight"] = its.weight
            case "hidden_mse" | "attention_mse" as name:
                hidden = name == "hidden_mse"
                matched = pairs(its.layers, student.depth, teacher.depth, lowest=0)
                whole = (0, 0) not in matched and hidden and its.layers != "last" and its.embeddings
                for mine, other in ((0, 0), *matched) if whole else matched:
                    match: dict[str, Any] = {
                        "layer_S": mine,
                        "layer_T": other,
                        "feature": "hidden" if hidden else "attention",
                    }
                    match |= {"loss": name, "weight": its.weight}
                    if hidden and student.width != teacher.width and its.projection:
                        match["proj"] = ["linear", student.width, teacher.width]
                    found["intermediate_matches"].append(match)
            case name:
                raise SystemExit(
                    f"the method textbrewer has a loss that is not said in TextBrewer's words here: {name}"
                )
    return found


class Named(nn.Module):
    """A speaker as TextBrewer calls a model."""

    def __init__(self, speaker: Speaker) -> None:
        super().__init__()
        self.speaker = speaker

    def forward(self, **batch: Tensor) -> Signals:
        return self.speaker(batch)


def adaptor(batch: Mapping[str, Tensor], said: Signals) -> dict[str, Any]:
    """What TextBrewer reads of a model; a mask of the labelled tokens where there is an output for each."""
    losses: list[Tensor] = []
    logits: list[Tensor] = []
    for name, given in said.outputs.items():
        if given.shape == said.mask.shape:  # a distribution over the positions
            given = given.masked_fill(said.mask == 0, -1e4)
        logits.append(given)
        truth = batch[TRUTH[name]]
        losses.append(nn.functional.cross_entropy(given.flatten(0, -2), truth.flatten(), ignore_index=-100))
    found = {
        "logits": logits, "losses": losses, "hidden": [*said.hidden.values()], "inputs_mask": said.mask,
        "attention": [said.queries[1], *(said.scores(layer) for layer in range(1, said.depth + 1))],
    }  # fmt: skip
    return {**found, "logits_mask": [said.mask]} if logits[0].dim() == 3 else found


def main() -> None:
    """Train, score, tell."""
    path, seed = Path(sys.argv[1]), int(sys.argv[2])
    logging.disable(logging.INFO)
    recipe, base = recipes.find(path)
    teach, step = recipe.step[0], recipe.step[1]
    assert isinstance(teach, recipes.Teach) and isinstance(step, recipes.Distill)
    data, folder = TaskData(recipe, base), weights.locate(teach, base)
    features, kind = data.features("train", folder), data.kind
    with tempfile.TemporaryDirectory() as out:
        facts = Facts(bytes=0, changed="")
        made = Made(
            Artifact(id="", name="", stage="", parents=(), files=(), facts=facts, seconds=0, versions={}), folder
        )
        job = Job(recipe, recipes.target("host"), data, {"model": made, "teacher": made}, Path(out), Path(out))
        torch.manual_seed(recipe.seed)
        model, _ = distill.new_student(step, models.load(folder, kind, data.labels), job)
        student, teacher = Speaker(model, kind), Speaker(models.load(folder, kind, data.labels), kind)
        size, budget = step.training.batch_size, step.training.examples
        assert budget is not None
        steps = round(budget / size)
        torch.manual_seed(seed)

        def batches() -> Any:
            while True:
                for rows in torch.randperm(len(features)).split(size):
                    batch = pad([features[i] for i in rows.tolist()], models.pad_id(model))
                    yield {name: torch.from_numpy(array) for name, array in batch.items()}

        distiller = textbrewer.GeneralDistiller(
            textbrewer.TrainingConfig(device="cpu", output_dir=out, ckpt_steps=10**9),
            textbrewer.DistillationConfig(**configuration(student, teacher)),
            Named(teacher), Named(student), adaptor, adaptor,
        )  # fmt: skip
        plain = ("bias", "LayerNorm.weight", "LayerNorm.bias")
        decayed = [p for name, p in student.named_parameters() if not name.endswith(plain)]
        rest = [p for name, p in student.named_parameters() if name.endswith(plain)]
        optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": step.training.weight_decay}, {"params": rest, "weight_decay": 0.0}],
            lr=step.training.learning_rate,
        )
        with Peak() as peak, distiller:
            distiller.train(
                optimizer, batches(), num_steps=steps, max_grad_norm=1.0,
                scheduler_class=get_linear_schedule_with_warmup,
                scheduler_args={
                    "num_warmup_steps": round(step.training.warmup * steps), "num_training_steps": steps,
                },
            )  # fmt: skip
    score = data.score(models.predictor(model.eval(), kind), folder)
    print(json.dumps({
        "score": score.value, "metric": score.metric, "seconds": round(peak.seconds, 1),
        "peak_rss_bytes": peak.rss_bytes, "examples": steps * size, "parameters": models.parameters(model),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
