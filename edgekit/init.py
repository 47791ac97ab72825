"""`edgekit init`: an annotated recipe to start from, put together from the files of pipeline/recipes/init/.

A task's file says its columns and data, `steps.toml` what follows. With a method, that method's steps stand between
teach and export in the place of distill and prune.
"""

import re
from pathlib import Path

from edgekit import systems
from edgekit.errors import InputError, nearest

_TEXT = """
[text]                          # what the pretrain step trains on, before the task
column = "text"                 # holds a text, or a list of words
# vectors = "vectors.npz"       # of words: for augment steps, which replace words of several tokens by near ones
[text.data]
name = "files"                  # or "hub", with dataset = "..."
train = "text.jsonl"
dev = "text.jsonl"              # not read
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
    steps = (folder / "steps.toml").read_text(encoding="utf-8")
    if method is not None:
        steps = _with(systems.find(method), steps)
    text = (folder / f"{task}.toml").read_text(encoding="utf-8") + steps
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"init: {out} exists already; name another file with --out") from None
    except OSError as error:
        raise InputError(f"init: cannot write {out}: {error.strerror}") from None
    return out


def _with(system: systems.System, steps: str) -> str:
    """`steps` with the system's own between teach and export."""
    head, *parts = re.split(r"^(?=\[\[step\]\])", steps, flags=re.MULTILINE)
    teach, end = parts[0], [part for part in parts if re.search(r'^stage = "(export|quantize)"', part, re.MULTILINE)]
    text = _TEXT if any(step.stage == "pretrain" for step in system.step) else ""
    return f"{text}{head}{teach}{systems.written_out(system).rstrip()}\n\n{''.join(end)}"
