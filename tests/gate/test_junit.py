"""JUnit XML, parsed again and held to the rules of its schema."""

import re
import xml.etree.ElementTree as xml

from verdicts import HOSTILE, check, hostile, mixed, verdict

from edgekit.errors import printable
from edgekit.gate.junit import document
from edgekit.results import Verdict

COUNTS = {"tests": "testcase", "failures": "failure", "errors": "error", "skipped": "skipped"}
ALLOWED = {
    "testsuites": ({"name", *COUNTS}, ["testsuite"]),
    "testsuite": ({"name", "timestamp", "time", *COUNTS}, ["testcase", "system-out"]),
    "testcase": ({"classname", "name", "time"}, ["skipped", "error", "failure"]),
    "failure": ({"type", "message"}, []),
    "error": ({"type", "message"}, []),
    "skipped": ({"message"}, []),
    "system-out": (set[str](), []),
}


def parsed(found: Verdict) -> xml.Element:
    """The document, which keeps the schema: names, order, attributes and counts."""
    text = document(found)
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>\n')
    root = xml.fromstring(text.encode())
    assert root.tag == "testsuites"
    for element in root.iter():
        attributes, children = ALLOWED[element.tag]
        assert set(element.attrib) == attributes
        order = [children.index(child.tag) for child in element]
        assert order == sorted(order)
        if element.tag in ("testsuites", "testsuite"):
            for count, tag in COUNTS.items():
                assert int(element.attrib[count]) == len(list(element.iter(tag)))
        if element.tag == "testsuite":
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", element.attrib["timestamp"])
            names = [(case.get("classname"), case.get("name")) for case in element.iter("testcase")]
            assert names, "a suite has cases"
            assert len(set(names)) == len(names)
        if element.tag == "testcase":
            assert len(element) <= 1
            assert float(element.attrib["time"]) >= 0
        if element.tag in ("failure", "error"):
            assert element.text
    return root


def told(root: xml.Element) -> dict[tuple[str | None, str | None], tuple[str, str | None, str | None]]:
    """What each case that did not pass says, by suite and name."""
    return {
        (suite.get("name"), case.get("name")): (end.tag, end.get("type"), end.get("message"))
        for suite in root
        for case in suite.iter("testcase")
        for end in case
    }


def test_each_answer_as_its_element() -> None:
    root = parsed(mixed())
    assert [suite.get("name") for suite in root] == ["gate", "my-pi", "other", "pixel-8"]
    assert told(root) == {
        ("gate", "answer"): (
            "failure", "REGRESSION", "REGRESSION: punctuation (bundles/new) against punctuation (git:main)",
        ),
        ("gate", "score"): ("skipped", None, "score: --no-score"),
        ("my-pi", "device"): ("error", "INFRA_ERROR", "ssh: refused"),
        ("other", "device"): ("failure", "REGRESSION", "outputs differ"),
        ("pixel-8", "latency_s 128"): ("failure", "REGRESSION", "slower by 14.0 %"),
        ("pixel-8", "peak_rss_bytes"): ("error", "INCONCLUSIVE", "too uncertain to tell"),
        ("pixel-8", "budget energy_j"): ("failure", "REGRESSION", "not measured"),
    }  # fmt: skip
    cases = root.findall(".//testsuite[@name='pixel-8']/testcase")
    assert [case.get("name") for case in cases if not len(case)] == ["latency_s 32", "budget latency_s 128"]
    assert {case.get("classname") for case in cases} == {"punctuation.pixel-8"}
    assert root.findtext(".//system-out") == "pixel-8, candidate: throttled: it was"


def test_a_pass_is_green() -> None:
    root = parsed(verdict(check()))
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("2", "0", "0")


def test_a_verdict_of_nothing_is_not() -> None:
    for answer in ("PASS", "INFRA_ERROR"):
        root = parsed(verdict(answer=answer, measured=()))
        assert told(root)["gate", "answer"][:2] == ("error", "INFRA_ERROR")
    assert told(parsed(verdict(check(), answer="INCONCLUSIVE")))["gate", "answer"][:2] == ("error", "INCONCLUSIVE")


def test_names_from_elsewhere_are_text() -> None:
    """Also with characters that XML 1.0 has no way to write."""
    root = parsed(hostile())
    assert root[1].get("name") == printable(HOSTILE)
    assert told(root)[printable(HOSTILE), "device"] == ("error", "INFRA_ERROR", printable(HOSTILE))
