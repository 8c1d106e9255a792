"""Means over windows of the log."""

import math

from helios_jax.training.log import skipped_players, window_means


def test_means_are_over_the_steps_that_have_the_metric():
    window = [
        {"a/loss": 1.0, "a/skipped": 0.0, "b/loss": 10.0, "b/skipped": 0.0},
        {"b/loss": 20.0, "b/skipped": 0.0},
        {"a/loss": 3.0, "a/skipped": 0.0, "b/loss": 60.0, "b/skipped": 0.0, "extra": 5.0},
    ]
    assert window_means(window) == {
        "a/loss": 2.0,
        "a/skipped": 0.0,
        "b/loss": 30.0,
        "b/skipped": 0.0,
        "extra": 5.0,
    }


def test_skipped_updates_are_counted_and_stay_out_of_the_means_of_their_player_alone():
    window = [
        {"a/loss": 1.0, "a/b/mse": 1.0, "a/skipped": 0.0, "b/loss": 4.0, "b/skipped": 0.0},
        {"a/loss": math.nan, "a/b/mse": math.nan, "a/skipped": 1.0, "b/loss": 6.0, "b/skipped": 0.0},
    ]
    assert skipped_players(window[1]) == ["a/"]
    assert window_means(window) == {"a/loss": 1.0, "a/b/mse": 1.0, "a/skipped": 1.0, "b/loss": 5.0, "b/skipped": 0.0}


def test_metrics_of_a_single_player_have_no_prefix():
    good = {"loss": 2.0, "level0/mse": 3.0, "skipped": 0.0}
    bad = {"loss": math.inf, "level0/mse": math.nan, "skipped": 1.0}
    assert window_means([good, bad]) == {"loss": 2.0, "level0/mse": 3.0, "skipped": 1.0}
    means = window_means([bad, bad])
    assert means["skipped"] == 2
    assert math.isnan(means["loss"])
    assert math.isnan(means["level0/mse"])


def test_metrics_that_a_step_may_lack():
    """NaN leaves the step out of the mean of such a metric alone."""
    window = [
        {"a/skipped": 0.0, "a/low?": 2.0, "a/high?": math.nan},
        {"a/skipped": 0.0, "a/low?": 4.0, "a/high?": math.nan},
    ]
    assert window_means(window) == {"a/skipped": 0.0, "a/low": 3.0}
