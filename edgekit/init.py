"""`edgekit init`: an annotated recipe to start from, put together from the files of pipeline/recipes/init/.

A task's file says its columns and data, `steps.toml` what follows. With a method, that method's steps stand between
teach and export in the place of distill and prune.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekit import systems
from edgekit.errors import InputError, nearest

_IMAGES, _UNLABELLED = "image_classification", "sentence_embedding"
_READERS = {"albert", "bert", "bigru", "cnn"}
"""Students that read token ids."""
_TEXT = """
[text]                          # what the pretrain step trains on, before the task
column = "text"                 # holds a text, or a list of words
# vectors = "vectors.npz"       # of words: for augment steps, which replace words of several tokens by near ones
[text.data]
name = "files"                  # or "hub", with dataset = "..."
train = "text.jsonl"
dev = "text.jsonl"              # a language model is scored on the first of it
"""


def init(task: str | None, out: Path, method: str | None = None) -> Path:
    """Write an annotated recipe for `task` to `out`, which must not exist yet; with `method`, that one's steps."""
    folder = Path(__file__).parent / "pipeline" / "recipes" / "init"
    known = sorted(path.stem for path in folder.glob("*.toml") if path.stem != "steps")
    if task is None or task not in known:
        hint = (
            f"name a task; {nearest('', known)}"
            if task is None
            else f'no task is called "{task}"; {nearest(task, known)}'
        )
        raise InputError(f"init: {hint}")
    steps = _for((folder / "steps.toml").read_text(encoding="utf-8"), task)
    if method is not None:
        found = systems.find(method)
        if refused := _refusal(found, task):
            raise InputError(f'init: method "{found.name}" {refused}; name another, or leave --method out')
        steps = _with(found, steps)
    text = (folder / f"{task}.toml").read_text(encoding="utf-8") + steps
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"init: {out} exists already; name another file with --out") from None
    except OSError as error:
        raise InputError(f"init: cannot write {out}: {error.strerror}") from None
    return out


def _for(steps: str, task: str) -> str:
    """`steps` without what a build of the task would refuse."""
    if task == _UNLABELLED:  # a teacher cannot be fine-tuned
        steps = re.sub(r"^\[step\.training\].*?\n(?=\n)", "", steps, count=1, flags=re.MULTILINE | re.DOTALL)
    if task == _IMAGES:
        steps = re.sub(r"^vocabulary = .*\n", "", steps, flags=re.MULTILINE)
    return steps


def _refusal(system: systems.System, task: str) -> str | None:
    """Why the task can have no such student; `None` where it can. A build would say so too, but only once it has data
    and a teacher."""
    stages = {step.stage for step in system.step}
    plugins = {name for step in system.step for name in _names(step.values)}
    if task == _IMAGES and "pretrain" in stages:
        return f"trains on plain text before the task, and {task} is of images"
    if task == _IMAGES and plugins & _READERS:
        return f"makes a student that reads tokens, and {task} is of images"
    if "augment" in stages and task not in ("text_classification", "token_classification"):
        return f"replaces words in rows of text or token classification, and these are of {task}"
    if task == _UNLABELLED and (asking := plugins & {"supervised", "cross_entropy"}):
        return (
            f"learns from labels ({', '.join(sorted(asking))}), and {task} has none: write the recipe without it, and "
            f"`edgekit build RECIPE --method {system.name}` teaches the embeddings in their place"
        )
    return None


def _names(value: Any) -> Iterator[str]:
    """Every plugin that is named in a step, however deep."""
    if isinstance(value, dict) and isinstance(name := value.get("name"), str):
        yield name
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _names(each)


def _with(system: systems.System, steps: str) -> str:
    """`steps` with the system's own between teach and export."""
    head, *parts = re.split(r"^(?=\[\[step\]\])", steps, flags=re.MULTILINE)
    teach, end = parts[0], [part for part in parts if re.search(r'^stage = "(export|quantize)"', part, re.MULTILINE)]
    text = _TEXT if any(step.stage == "pretrain" for step in system.step) else ""
    return f"{text}{head}{teach}{systems.written_out(system).rstrip()}\n\n{''.join(end)}"
