"""Ways to train a student: what their files may say, and what becomes of a recipe that takes one up."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from edgekit import recipe as recipes
from edgekit import systems
from edgekit.errors import InputError
from edgekit.init import init
from edgekit.recipe import Augment, Distill, Pretrain, Prune, Recipe, Teach, Training
from edgekit.records import parse
from edgekit.systems import System, apply

HEAD = 'title = "a line"\nsource = "someone, a paper, 2020, section 3"\n'
ONE = '[[step]]\nstage = "distill"\nsized = true\ntraining = { share = 1 }\n'
TWO = """
[[step]]
stage = "distill"
sized = true
start = "uniform"                    # as the paper has it
[step.training]
share = 0.75
batch_size = 4
[step.method]
name = "kd"
losses = [{ name = "hidden_mse" }]

# after that, with logits
[[step]]
stage = "distill"
training = { share = 0.25, learning_rate = 3e-5 }
method = { name = "kd", losses = [{ name = "kl" }] }
"""
GENERAL = """
[[step]]
stage = "pretrain"                   # the teacher's own language model
training = { share = 0.2 }
[[step]]
stage = "pretrain"
sized = true
training = { share = 0.3 }
[[step]]
stage = "augment"
copies = 2
[[step]]
stage = "distill"
training = { share = 0.5 }
"""
OWN = '[[step]]\nstage = "distill"\nstudent = { name = "bert", layers = 2 }\ntraining = { share = 1 }\n'
DYNA = ONE + 'method = { name = "dynabert" }\n[[step]]\nstage = "extract"\nwidth = 0.5\n'
TASKS = (
    "text_classification", "token_classification", "question_answering", "sentence_embedding", "image_classification",
)  # fmt: skip


def unlabelled(name: str) -> list[Any]:
    """The methods of a shipped system's steps, for sentence embeddings."""
    made = systems.without_labels(systems.find(name))
    return [step.values.get("method") for step in made.step if step.stage != "augment"]


def test_without_labels_an_embedding_learns_from_the_teachers() -> None:
    embedding = {"name": "output_mse"}
    assert unlabelled("kd") == [{"name": "kd", "losses": [embedding]}]
    assert unlabelled("minilmv2") == [
        {"name": "kd", "losses": [{"name": "minilmv2"}]}, {"name": "kd", "losses": [embedding]},
    ]  # fmt: skip
    assert [each["name"] for each in unlabelled("theseus")] == ["theseus", "kd"]
    assert unlabelled("bert_emd")[0]["losses"] == [embedding] and unlabelled("bert_emd")[0]["hidden"] == 0.01
    assert unlabelled("dynabert") == [step.values["method"] for step in systems.find("dynabert").step]
    assert unlabelled("supervised") == [{"name": "supervised"}], "there is nothing else to learn from"


UNLABELLED, IMAGES = "sentence_embedding", "image_classification"
UNFIT = {
    "albert": {UNLABELLED, IMAGES}, "distilbert": {UNLABELLED, IMAGES}, "electra": {UNLABELLED, IMAGES},
    "tinybert": {UNLABELLED, IMAGES, "question_answering"}, "dynabert": set[str](),
}  # fmt: skip
"""Tasks that a method is not for; that without labels is for no other method."""


def system(tmp_path: Path, steps: str, head: str = HEAD) -> System:
    path = tmp_path / "mine.toml"
    path.write_text(head + steps)
    return systems.find(str(path))


def recipe(*steps: dict[str, Any], text: bool = True, **values: Any) -> Recipe:
    """Teach, `steps` (by default one distill step), export."""
    given = steps or ({"stage": "distill", "layers": 3, "training": {"epochs": 2, "learning_rate": 1e-3}},)
    data = {"name": "files", "train": "t.jsonl", "dev": "d.jsonl"}
    tables = {"text": {"data": data}} if text else {}
    return parse(
        Recipe,
        {
            "name": "tiny", "task": {"name": "text_classification"}, "data": data, **tables, **values,
            "step": [{"stage": "teach", "model": "m"}, *given, {"stage": "export"}, {"stage": "quantize"}],
        },
        "recipe",
    )  # fmt: skip


def never() -> int:
    raise AssertionError("rows need not be counted")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD, 'key "step" is missing|at least 1'),
        (ONE, 'key "title" is missing'),
        (HEAD + "titel = 1\n" + ONE, 'did you mean "title"'),
        (HEAD + "step = 3", 'key "step" must be tables'),
        (HEAD + "step = [3]", 'key "step" must be tables'),
        (HEAD + ONE.replace("training = { share = 1 }\n", ""), 'key "step.0": training.share'),
        (HEAD + ONE.replace("share = 1", 'share = "all"'), 'key "step.0": training.share'),
        (HEAD + ONE.replace("share = 1", "share = 0.5"), "add up to 1, found 0.5"),
        (HEAD + ONE.replace("share = 1", "share = 1.5"), "above 0 and up to 1"),
        (HEAD + ONE.replace("share = 1", "share = 1, epochs = 3"), "training.epochs is the recipe's to say"),
        (HEAD + ONE.replace("share = 1", "share = 1, larning_rate = 3"), 'did you mean "learning_rate"'),
        (HEAD + ONE.replace("sized = true", "sized = 3"), "sized = true is for"),
        (HEAD + ONE + '[[step]]\nstage = "extract"\nsized = true\n', 'key "step.1": sized = true is for'),
        (HEAD + ONE.replace('"distill"', '"export"'), "export"),
        (HEAD + ONE.replace('stage = "distill"\n', ""), "step.0"),
        (HEAD + ONE + "lairs = 3", 'did you mean "layers"'),
        (HEAD + "[[step", "is not valid TOML"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_key(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=said) as raised:
        systems.read(path)
    assert str(path) in str(raised.value)


def test_a_typo_names_the_nearest_method(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--method: there is no file nothing\.toml"):
        systems.find("nothing.toml")
    for name in systems.names():
        with pytest.raises(InputError, match=f'did you mean "{name}"|there is: '):
            systems.find(f"{name}q")


def test_the_steps_stand_where_the_recipes_own_stood(tmp_path: Path) -> None:
    before = recipe()
    after = apply(before, system(tmp_path, TWO), never)
    assert [step.stage for step in after.step] == ["teach", "distill", "distill", "export", "quantize"]
    assert after.model_copy(update={"step": before.step}) == before
    first, second = after.step[1:3]
    assert isinstance(first, Distill) and isinstance(second, Distill)
    assert (first.layers, first.start) == (3, "uniform")
    assert (second.layers, second.start) == (None, "bottom"), "the second goes on with the first one's student"
    assert (first.training.epochs, second.training.epochs) == (1.5, 0.5)
    assert (first.training.learning_rate, second.training.learning_rate) == (1e-3, 3e-5)
    assert (first.training.batch_size, second.training.batch_size) == (4, 32)


def test_the_budget_is_all_of_the_recipes_distill_steps(tmp_path: Path) -> None:
    two = recipe(
        {"stage": "distill", "layers": 4, "training": {"epochs": 2}},
        {"stage": "prune", "heads": 2},
        {"stage": "distill", "layers": 2, "training": {"epochs": 1, "learning_rate": 3e-4}, "max_drop": 0.1},
    )
    (step,) = [one for one in apply(two, system(tmp_path, ONE), never).step if isinstance(one, Distill)]
    assert (step.training.epochs, step.layers, step.training.learning_rate, step.max_drop) == (3, 2, 3e-4, 0.1)


def test_size_and_budget_are_also_those_of_pretrain_steps(tmp_path: Path) -> None:
    general = recipe(
        {"stage": "pretrain", "training": {"epochs": 0.5}},
        {"stage": "pretrain", "layers": 3, "start": "uniform", "training": {"epochs": 1, "learning_rate": 1e-5}},
        {"stage": "distill", "training": {"epochs": 2, "learning_rate": 1e-3, "evaluate": 2}},
    )
    step = apply(general, system(tmp_path, ONE), never).step[1]
    assert isinstance(step, Distill) and (step.layers, step.start) == (3, "uniform")
    assert (step.training.epochs, step.training.learning_rate, step.training.evaluate) == (3.5, 1e-3, 2)
    again = apply(general, system(tmp_path, GENERAL), lambda: 1000)
    assert [step.layers for step in again.step if isinstance(step, Pretrain | Distill)] == [None, 3, None]
    assert [step.training.examples for step in again.step if isinstance(step, Pretrain)] == [700, 1050]


def test_what_a_method_would_drop_is_refused(tmp_path: Path) -> None:
    dynamic = {"stage": "distill", "method": {"name": "dynabert"}}
    data = {"name": "files", "train": "t.jsonl", "dev": "d.jsonl"}
    also = {"name": "more", "task": {"name": "text_classification"}, "data": data, "model": "m"}
    for before, said in (
        (recipe(dynamic, {"stage": "extract", "width": 0.5}), "has an extract step, which"),
        (recipe({"stage": "distill", "teachers": ["n"]}), 'has "teachers" in a distill step, which'),
        (recipe({"stage": "distill", "also": [also]}, deliver="more"), 'has "also" in a distill step, which'),
    ):
        with pytest.raises(InputError, match=f'method "mine": recipe tiny {said}'):
            apply(before, system(tmp_path, ONE), never)
    assert apply(recipe(dynamic, {"stage": "extract"}), system(tmp_path, DYNA), never).step[2].stage == "extract"


def test_a_student_of_a_teacher_that_is_not_trained_is_refused() -> None:
    teach: dict[str, Any] = {"stage": "teach", "model": "m", "student": {"name": "ladder"}}
    values = recipe().model_dump()
    with pytest.raises(InputError, match="nothing is trained here; add training"):
        parse(Recipe, {**values, "step": [teach]}, "recipe")
    assert parse(Recipe, {**values, "step": [{**teach, "training": {}}]}, "recipe").step[0].stage == "teach"


def test_examples_are_counted_where_a_budget_is_spent_on_other_data(tmp_path: Path) -> None:
    after = apply(recipe(), system(tmp_path, GENERAL), lambda: 1000)
    trained = [step for step in after.step if isinstance(step, Pretrain | Distill)]
    assert [step.training.examples for step in trained] == [400, 600, 1000]
    assert [step.layers for step in trained] == [None, 3, None]
    (augment,) = (step for step in after.step if isinstance(step, Augment))
    assert augment.copies == 2 and augment.rows == 500, "as many new rows as the 1000 examples after it"
    mixed = recipe(
        {"stage": "distill", "layers": 2, "training": {"examples": 500}},
        {"stage": "distill", "training": {"epochs": 2}},
    )
    found = apply(mixed, system(tmp_path, ONE), lambda: 100).step[1]
    assert isinstance(found, Distill) and found.training.examples == 700
    counted = recipe({"stage": "distill", "layers": 2, "training": {"examples": 501}})
    shared = [
        step.training.examples
        for step in apply(counted, system(tmp_path, TWO), never).step[1:3]
        if isinstance(step, Distill)
    ]
    assert shared == [376, 125]


def test_the_size_is_the_recipes_unless_the_method_has_its_own(tmp_path: Path) -> None:
    bigru = recipe({"stage": "distill", "student": {"name": "bigru", "hidden": 8}})
    sized = apply(bigru, system(tmp_path, ONE), never).step[1]
    assert isinstance(sized, Distill) and sized.student and sized.student.params == {"hidden": 8}
    for source in (bigru, recipe()):
        own = apply(source, system(tmp_path, OWN), never).step[1]
        assert isinstance(own, Distill) and own.student and own.student.name == "bert"
        layers = apply(source, system(tmp_path, ONE + "layers = 1\n"), never).step[1]
        assert isinstance(layers, Distill) and (layers.layers, layers.student) == (1, None)


def test_prune_steps_stay_where_they_suit_the_student(tmp_path: Path) -> None:
    prune = {"stage": "prune", "heads": 2, "max_drop": 0.2}
    pruned = recipe({"stage": "prune", "neurons": 8}, {"stage": "distill", "layers": 2}, prune)
    stages = [step.stage for step in apply(pruned, system(tmp_path, TWO), never).step]
    assert stages == ["teach", "distill", "distill", "prune", "export", "quantize"]
    kept = apply(pruned, system(tmp_path, ONE), never).step[2]
    assert isinstance(kept, Prune) and kept.heads == 2 and kept.max_drop == 0.2
    for steps in (
        OWN,
        DYNA,
        ONE + '[[step]]\nstage = "prune"\nheads = 1\n',
    ):
        found = apply(pruned, system(tmp_path, steps), never)
        assert not [step for step in found.step if isinstance(step, Prune) and step.heads == 2]


@pytest.mark.parametrize(
    ("before", "steps", "said"),
    [
        (recipe({"stage": "prune", "heads": 2}), ONE, "recipe tiny has no distill step"),
        (recipe(text=False), GENERAL, r"names no plain text.*add a table \[text\]"),
        (recipe({"stage": "distill"}), GENERAL, "add layers to the distill step"),
    ],
)
def test_a_recipe_that_a_method_cannot_work_with(before: Recipe, steps: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said) as raised:
        apply(before, system(tmp_path, steps), lambda: 10)
    assert 'method "mine"' in str(raised.value)


def written(found: System) -> Recipe:
    """The recipe whose steps are those that the method is written out as."""
    steps = tomllib.loads(systems.written_out(found))["step"]
    return recipe(*steps)


@pytest.mark.parametrize("steps", [ONE, TWO, GENERAL, OWN])
def test_written_out_it_is_what_apply_makes(steps: str, tmp_path: Path) -> None:
    found = system(tmp_path, "# What it is.\n" + steps)
    text = systems.written_out(found)
    assert "# What it is." in text and "mine: a line" in text
    assert ("as the paper has it" in text) == (steps == TWO)
    after = apply(
        recipe({"stage": "distill", "layers": 3, "training": {"epochs": 2, "learning_rate": 2e-4}}), found, lambda: 1
    )

    def plain(one: Recipe) -> list[dict[str, Any]]:
        left_out = {"max_drop": True, "rows": True, "training": {"epochs", "examples"}}
        return [step.model_dump(exclude=left_out) for step in one.step]

    assert plain(written(found)) == plain(after)


def test_steps_are_written_out_in_every_spelling_that_can_be_copied(tmp_path: Path) -> None:
    spelt = ONE.replace("[[step]]", " [[ step ]]  # one").replace("training = { share = 1 }", "training.share = 1")
    found = system(tmp_path, spelt)
    (step,) = tomllib.loads(systems.written_out(found))["step"]
    assert (step["layers"], step["training"]["epochs"]) == (3, 2)
    inline = system(tmp_path, 'step = [{ stage = "distill", sized = true, training = { share = 1 } }]\n')
    with pytest.raises(InputError, match=r'method "mine": its 1 steps .* 0 lines \[\[step\]\]'):
        systems.written_out(inline)


@pytest.mark.parametrize("name", systems.names())
def test_every_method_that_ships(name: str, tmp_path: Path) -> None:
    """It says what it is and whence, takes a recipe's place and budget, and can be written out and edited."""
    found = systems.find(name)
    assert len(found.title) <= 120 and found.source[-1] != "."
    after = apply(recipe(), found, lambda: 1000)
    assert after.step[-1].stage == "quantize"
    assert written(found).step[-1].stage == "quantize"
    for task in set(TASKS) - UNFIT.get(name, {UNLABELLED}):
        read = recipes.read(init(task, tmp_path / f"{task}.toml", name))
        assert [step.stage for step in read.step] == [step.stage for step in after.step]
        if any(step.sized for step in found.step):
            (kd,) = [step for step in apply(read, systems.find("kd"), never).step if isinstance(step, Distill)]
            assert (kd.layers, kd.training.epochs) == (3, 2), "the size and budget that the recipe gives"
            assert [step.stage for step in apply(read, found, lambda: 1000).step] == [step.stage for step in read.step]
    assert recipes.read(recipes.shipped()["default"]).text, "what ships has the text that methods need"
    apply(recipes.read(recipes.shipped()["default"]), found, lambda: 1000)


@pytest.mark.parametrize(
    ("task", "name", "said"),
    [
        ("image_classification", "electra", "trains on plain text before the task, and image_classification is of"),
        ("image_classification", "albert", "makes a student that reads tokens, and"),
        ("question_answering", "tinybert", "replaces words in rows of text or token classification, and these are of"),
        ("sentence_embedding", "kd", r"learns from labels \(cross_entropy\), and sentence_embedding has none"),
        ("sentence_embedding", "supervised", r"learns from labels \(supervised\), and"),
    ],
)
def test_init_refuses_a_method_that_is_not_for_the_task(task: str, name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f'init: method "{name}" {said}'):
        init(task, tmp_path / "new.toml", name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", [None, "dynabert"])
def test_init_leaves_out_what_the_task_has_not(task: str, method: str | None, tmp_path: Path) -> None:
    read = recipes.read(init(task, tmp_path / "new.toml", method))
    teach = read.step[0]
    assert isinstance(teach, Teach) and (teach.training is None) == (task == "sentence_embedding"), "labels"
    (tuned,) = [step for step in read.step if isinstance(step, Distill)][:1]
    assert tuned.training != Training(), "only the teacher's training is left out"
    for step in read.step:
        if isinstance(step, Prune):
            assert (step.vocabulary is None) == (task == "image_classification")


def test_the_list_fits_a_terminal(tmp_path: Path) -> None:
    every = [systems.find(name) for name in systems.names()]
    every.append(system(tmp_path, ONE, 'title = "a [red]line[/red] \\u001b[31m"\nsource = "x"\n'))
    text = systems.lines(every)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text and "[red]" in text
    assert all(name in text for name in systems.names())
