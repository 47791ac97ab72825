"""This host: whatever the arguments, they arrive as they are."""

import os
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.bench.transports import local

ECHO = "import os, sys; sys.stdout.buffer.write(b''.join(os.fsencode(a) + b'\\0' for a in sys.argv[1:]))"
WORDS = st.lists(st.binary(max_size=20).map(lambda word: word.replace(b"\0", b"")).map(os.fsdecode), max_size=5)


@settings(max_examples=40)
@given(WORDS)
def test_arguments_arrive_as_they_are(words: list[str]) -> None:
    with local.connect(local.Params()) as transport:
        done = transport.run([sys.executable, "-S", "-c", ECHO, *words], 30)
    assert done.stdout == b"".join(os.fsencode(word) + b"\0" for word in words)
