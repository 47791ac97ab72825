"""A verdict as JUnit XML, as GitLab and the reporters of GitHub read it: one test suite a device, one case a check.

    PASS            a case that passed
    REGRESSION      <failure>
    INCONCLUSIVE    <error>: a check that gave no answer must not look green
    INFRA_ERROR     <error>
    left out        <skipped>, with the reason

A suite of its own, `gate`, holds the overall answer, so that a verdict without checks is no green page either.
"""

import xml.etree.ElementTree as xml
from datetime import datetime

from edgekit import tables
from edgekit.errors import printable
from edgekit.results import Answer, Verdict


def document(found: Verdict) -> str:
    """The XML document, with a declaration; characters that XML does not allow are `?`."""
    began, root = _began(found), xml.Element("testsuites", name="edgekit gate")
    bundle = printable(found.candidate.name)
    gate = xml.SubElement(root, "testsuite", name="gate", timestamp=began, time=f"{found.seconds:.3f}")
    passed = found.answer == "PASS" and bool(found.checks)
    said = f"{found.answer}: {found.candidate.name} ({found.candidate.source}) against {found.baseline.name} "
    said += f"({found.baseline.source})" if found.checks else f"({found.baseline.source}); nothing was judged"
    _case(gate, bundle, "answer", None if passed else _unless_pass(found.answer), said)
    for one in found.left_out:
        skipped = _case(gate, bundle, printable(one.partition(":")[0]), None, "")
        xml.SubElement(skipped, "skipped", message=printable(one))
    for device in tables.devices_of(found):
        suite = xml.SubElement(root, "testsuite", name=printable(device), timestamp=began, time="0.000")
        place = printable(f"{found.candidate.name}.{device}")
        for check in found.checks:
            if check.device == device:
                answer = None if check.answer == "PASS" else check.answer
                _case(suite, place, printable(tables.label(check)), answer, check.reason)
        for failure in found.failures:
            if failure.device == device:
                _case(suite, place, "device", _of_failure(failure.exit_code), failure.message)
        doubts = [printable(one) for one in tables.doubts(found) if one.startswith(f"{device}, ")]
        if doubts:
            xml.SubElement(suite, "system-out").text = "\n".join(doubts)
    for suite in root:
        kinds = {"tests": "testcase", "failures": "failure", "errors": "error", "skipped": "skipped"}
        for count, tag in kinds.items():
            suite.set(count, str(sum(1 for _ in suite.iter(tag))))
    for count in ("tests", "failures", "errors", "skipped"):
        root.set(count, str(sum(int(suite.get(count, 0)) for suite in root)))
    xml.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{xml.tostring(root, encoding="unicode")}\n'


def _case(suite: xml.Element, place: str, name: str, answer: Answer | None, reason: str) -> xml.Element:
    """A case; with an answer it did not pass."""
    case = xml.SubElement(suite, "testcase", classname=place, name=name, time="0.000")
    if answer:
        kind = "failure" if answer == "REGRESSION" else "error"
        xml.SubElement(case, kind, type=answer, message=printable(reason)).text = printable(reason)
    return case


def _unless_pass(answer: Answer) -> Answer:
    return "INFRA_ERROR" if answer == "PASS" else answer


def _of_failure(exit_code: int) -> Answer:
    return "REGRESSION" if exit_code == 3 else "INFRA_ERROR"


def _began(found: Verdict) -> str:
    """The schema's time has no zone; ours is UTC."""
    try:
        return datetime.fromisoformat(found.began).strftime("%Y-%m-%dT%H:%M:%S")
    except ValueError:
        return "1970-01-01T00:00:00"
