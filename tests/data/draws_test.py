"""Draws are those of Philox, by integer arithmetic alone."""

import numpy as np
import pytest

from helios_jax.data.draws import Draws, uniform


def test_numbers_are_the_high_words_of_philox_scaled():
    # The first words of Philox4x64-10 under the key (1, 2), as numpy's Philox counts (counter 1 first).
    assert np.random.Philox(key=np.array([1, 2], np.uint64)).random_raw(2).tolist() == [
        5705853004827290377,
        6584680345644299050,
    ]
    # 5705853004827290377 / 2^64 = 0.30931, 6584680345644299050 / 2^64 = 0.35695
    draws = Draws(1, 2)
    assert [draws.below(1000), draws.below(1000)] == [309, 356]


def test_every_pair_has_a_stream_of_its_own():
    streams = {tuple(Draws(s, i).below(2**31) for _ in range(2)) for s in (-1, 0, 1, 2**40) for i in (0, 1, 2**63)}
    assert len(streams) == 12


def test_draws_are_uniform():
    draws = Draws(0, 0)
    counts = np.bincount([draws.below(7) for _ in range(7000)], minlength=7)
    assert abs(counts - 1000).max() < 4 * np.sqrt(7000 * 6 / 49)  # four standard deviations


def test_sample_takes_different_values_in_every_order():
    orders = {Draws(5, i).sample("abc", 2) for i in range(200)}
    assert orders == {("a", "b"), ("a", "c"), ("b", "a"), ("b", "c"), ("c", "a"), ("c", "b")}


def test_impossible_draws_are_refused():
    with pytest.raises(ValueError, match="0 < n"):
        Draws(0, 0).below(0)
    with pytest.raises(ValueError, match="4 different values out of 3"):
        Draws(0, 0).sample("abc", 4)


def test_uniform_is_splitmix64():
    # The first outputs for the seed 1234567, as published with several implementations.
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [uniform(1234567, position) for position in range(4)] == [(word >> 11) / 2**53 for word in outputs]
