"""A verdict as a comment of a pull or merge request, in the Markdown that GitHub and GitLab share.

Names come from devices, recipes and branches, and are anybody's words: they can neither break the table nor ping a
team, link, load a picture or open a tag. Each of their special characters is written as an HTML entity, which neither
site reads as markup, and what a site looks for in plain text (`@team`, `#12`, `https://`) is cut by an invisible space.
"""

import re
from collections.abc import Iterable

from edgekit import tables
from edgekit.errors import printable
from edgekit.results import Answer, Check, Reading, RunResult, Verdict

MARKER = "<!-- edgekit-gate -->"
"""The first line, by which CI finds its comment again."""
_WORST: tuple[Answer, ...] = ("REGRESSION", "INFRA_ERROR", "INCONCLUSIVE", "PASS")
_MOST = 60_000
"""A comment's characters; GitHub takes 65,536."""


def page(found: Verdict) -> str:
    """The answer as a heading, the checks as a table, why they are no PASS, and all else folded away."""
    names = f"{_text(found.candidate.name)} against {_text(found.baseline.name)} ({_text(found.baseline.source)})"
    head = [MARKER, f"## {found.answer}: {names}", ""]
    first = sorted(found.checks, key=lambda check: _WORST.index(check.answer))  # where all is too long for a comment
    for most in (len(first), 100, 20):
        kept = set(map(id, first[:most]))
        body = "\n".join([*head, *_body(found, [check for check in found.checks if id(check) in kept])])
        for details in (_details(found), ["The details are too long for a comment: see the report.", ""]):
            text = "\n".join([body, *details])
            if len(text) <= _MOST:
                return text
    return "\n".join([*head, "There is too much to say for a comment: see the report.", ""])


def _body(found: Verdict, checks: list[Check]) -> list[str]:
    lines: list[str] = []
    if checks:
        interval = _interval(checks)
        lines += [f"| device | check | baseline | candidate | change | {interval} | floor or limit | answer |"]
        lines += ["|---|---|--:|--:|--:|--:|--:|---|"]
    for check in checks:
        answer = check.answer if check.answer == "PASS" else f"**{check.answer}**"
        cells = (check.device, tables.label(check), *tables.cells(check))
        lines.append(f"| {' | '.join(map(_text, cells))} | {answer} |")
    if left := len(found.checks) - len(checks):
        lines += ["", f"{left} more checks are in the report."]
    if not found.checks:
        lines.append("Nothing was judged.")
    lines.append("")
    lines += [
        f"- **{check.answer}** {_text(check.device)}, {_text(tables.label(check))}: {_text(check.reason)}"
        for check in checks
        if check.answer != "PASS"
    ]
    lines += [f"- **FAILED** {_text(one.device)}: {_text(one.message)}" for one in found.failures]
    lines += [f"- left out: {_text(one)}" for one in found.left_out]
    return [*lines, ""]


def _interval(checks: list[Check]) -> str:
    """The heading of the intervals: with their level where that is one."""
    levels = {check.interval.level for check in checks if check.interval}
    return f"{100 * levels.pop():g} % interval" if len(levels) == 1 else "interval"


def _details(found: Verdict) -> list[str]:
    lines = _folded("Doubts", (_text(one) for one in tables.doubts(found)))
    sides = [pair.candidate for pair in found.measured]
    lines += _folded("Conditions", (f"{_text(side.device)}: {_text(_conditions(side))}" for side in sides))
    facts = [
        f"{what}: {_text(bundle.name)} ({_text(bundle.source)}), digest <code>{_text(bundle.digest)}</code>"
        for what, bundle in (("candidate", found.candidate), ("baseline", found.baseline))
    ]
    facts += [_text(found.correction)] if found.correction else []
    facts.append(f"edgekit {_text(found.edgekit)}, began {_text(found.began)}, took {found.seconds:.0f} s")
    return lines + _folded("How it was judged", facts)


def _folded(title: str, lines: Iterable[str]) -> list[str]:
    """A list that is read when one opens it; the empty lines make both sites read Markdown inside."""
    inside = [f"- {line}" for line in lines]
    return [f"<details><summary>{title} ({len(inside)})</summary>", "", *inside, "", "</details>", ""] if inside else []


def _conditions(result: RunResult) -> str:
    """What the device was like from the first reading to the last."""
    readings = result.readings
    parts = [tables.measured_with(result)]
    for name, unit, values in (
        ("hottest zone", "°C", [max(one.temperatures_c.values()) for one in readings if one.temperatures_c]),
        ("clocks", "GHz", [clock / 1e9 for one in readings for clock in _measured_clocks(result, one)]),
        ("load", "%", [one.load * 100 for one in readings if one.load is not None]),
        ("battery", "%", [one.battery_percent for one in readings if one.battery_percent is not None]),
    ):
        if values:
            low, high = f"{min(values):.3g}", f"{max(values):.3g}"
            parts.append(f"{name} {low if low == high else f'{low} to {high}'} {unit}")
    governors = sorted({name for one in readings for name in one.governors.values()})
    parts += [f"governor {' and '.join(governors)}"] if governors else []
    charging = {one.charging for one in readings if one.charging is not None}
    parts += [f"charging: {' and '.join('yes' if one else 'no' for one in sorted(charging))}"] if charging else []
    return "; ".join(parts)


def _measured_clocks(result: RunResult, reading: Reading) -> list[int]:
    return [hertz for core, hertz in reading.clocks_hz.items() if result.cpus is None or core in result.cpus]


_MARKUP = re.compile(r"[&<>|`*~\[\]\\$]|(?<![^\W_])_|_(?![^\W_])")
_SOUGHT = re.compile(r"[@#!%~&$](?=\w)|:(?=//)|\bwww(?=\.)|\bGH(?=-\d)|:(?=[a-z+-]\w*:)", re.IGNORECASE)
_CUT = "\N{ZERO WIDTH SPACE}"


def _text(text: str, most: int = 500) -> str:
    """Anybody's words as words: one line without markup, mentions and links; `most` characters of them."""
    line = printable(text)
    line = line if len(line) <= most else line[: most - 1] + "…"
    cut = _SOUGHT.sub(lambda found: found[0] + _CUT, line)
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", cut)
