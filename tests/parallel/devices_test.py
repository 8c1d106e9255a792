"""Devices and sizes in words."""

import pytest

from helios_jax.parallel.devices import bytes_in_words


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (253_785_062, "253.8 MB"),
        (28_624_855_168, "28.62 GB"),
        (2 * 10**12, "2000 GB"),
    ],
)
def test_bytes_in_words(size, words):
    assert bytes_in_words(size) == words
