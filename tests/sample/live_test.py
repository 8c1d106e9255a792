"""Prompts typed while a video is made."""

import io
import os
import time

from helios_jax.sample.live import TypedPrompts


def wait_for_the_end(typed: TypedPrompts) -> list[str]:
    found, limit = [], time.monotonic() + 20
    while not typed.ended and time.monotonic() < limit:
        found += typed.new()
        time.sleep(0.005)
    assert typed.ended
    return found + typed.new()


def test_lines_until_the_end():
    assert wait_for_the_end(TypedPrompts(io.StringIO("sun\n\n  rain \nsnow"))) == ["sun", "rain", "snow"]
    assert wait_for_the_end(TypedPrompts(None)) == []


def test_lines_come_while_the_input_is_open():
    read, write = os.pipe()
    with os.fdopen(read) as source, os.fdopen(write, "w") as keyboard:
        typed = TypedPrompts(source)
        assert typed.new() == []
        keyboard.write("rain\n")
        keyboard.flush()
        limit = time.monotonic() + 20
        while not (found := typed.new()) and time.monotonic() < limit:
            time.sleep(0.005)
        assert found == ["rain"]
        assert not typed.ended
        keyboard.close()
        assert wait_for_the_end(typed) == []
