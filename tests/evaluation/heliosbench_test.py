"""Tables, ratings and totals of HeliosBench, and the example that its authors give."""

import math

import pytest

from helios_jax.evaluation.heliosbench import LONG, SHORT, VideoName, throughput_rating

EXAMPLE = {
    "aesthetic": (0.6564, 9),
    "motion_amplitude": (0.1290, 3),
    "motion_smoothness": (0.9922, 10),
    "naturalness": (0.5, 7),
    "semantic": (0.2818, 8),
    "drifting_aesthetic": (0.0279, 8),
    "drifting_motion_smoothness": (0.0010, 10),
    "drifting_semantic": (0.0, 10),
    "drifting_naturalness": (0.0066, 10),
}
"""Means over two clips and their ratings, as published; the total is 8.247."""


def test_the_published_example():
    ratings = LONG.ratings({name: mean for name, (mean, _) in EXAMPLE.items()})
    assert ratings == {name: rating for name, (_, rating) in EXAMPLE.items()}
    assert LONG.total(ratings) == 8.247


def test_tables_are_the_published_ones():
    common = {
        "motion_amplitude": (0.45, 0.40, 0.35, 0.30, 0.25, 0.20, 0.15, 0.10, 0.05),
        "motion_smoothness": (0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.93, 0.92, 0.91),
        "semantic": (0.30, 0.29, 0.28, 0.27, 0.26, 0.25, 0.24, 0.23, 0.22),
        "naturalness": (0.65, 0.60, 0.55, 0.50, 0.45, 0.40, 0.30, 0.25, 0.20),
    }
    hundredths = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09)
    assert SHORT.thresholds == common | {"aesthetic": (0.70, 0.65, 0.60, 0.55, 0.50, 0.45, 0.40, 0.35, 0.30)}
    assert LONG.thresholds == common | {
        "aesthetic": (0.70, 0.65, 0.60, 0.55, 0.50, 0.45, 0.40, 0.45, 0.40),
        "drifting_aesthetic": hundredths,
        "drifting_motion_smoothness": hundredths,
        "drifting_semantic": hundredths,
        "drifting_naturalness": (0.06, 0.08, 0.10, 0.12, 0.14, 0.16, 0.18, 0.20, 0.22),
    }


def test_weights_sum_as_published():
    assert math.isclose(sum(SHORT.weights.values()), 1)
    assert math.isclose(sum(LONG.weights.values()), 0.996)
    assert SHORT.total(dict.fromkeys(SHORT.weights, 10)) == 10
    assert LONG.total(dict.fromkeys(LONG.weights, 10)) == 9.96


@pytest.mark.parametrize("rules", [SHORT, LONG], ids=["short", "long"])
def test_every_threshold_is_met_by_its_own_value(rules):
    for name, thresholds in rules.thresholds.items():
        worse = 1e-9 if name.startswith("drifting_") else -1e-9
        reached = [rules.rating(name, value) for value in thresholds]
        just_missed = [rules.rating(name, value + worse) for value in thresholds]
        if (name, rules) == ("aesthetic", LONG):
            # 0.45 and 0.40 stand twice: nothing is rated 3 or 2.
            assert reached == [10, 9, 8, 7, 6, 5, 4, 5, 4]
            assert just_missed == [9, 8, 7, 6, 5, 4, 1, 4, 1]
        else:
            assert reached == [10, 9, 8, 7, 6, 5, 4, 3, 2]
            assert just_missed == [9, 8, 7, 6, 5, 4, 3, 2, 1]


def test_means_are_clipped():
    assert LONG.rating("motion_amplitude", 7.5) == 10
    assert LONG.rating("semantic", -0.2) == 1
    assert LONG.rating("drifting_semantic", 3.0) == 1


def test_no_total_without_all_ratings():
    ratings = LONG.ratings({"motion_amplitude": 0.129})
    assert ratings == {"motion_amplitude": 3}
    assert LONG.total(ratings) is None
    with pytest.raises(ValueError, match="semantic has no value"):
        LONG.rating("semantic", math.nan)


@pytest.mark.parametrize(
    ("speed", "rating"), [(0.1, 1), (3.2, 1), (3.3, 2), (19.53, 7), (28.8, 9), (28.9, 10), (32, 10), (500, 10)]
)
def test_speed_is_rated_in_steps_of_a_tenth_of_32(speed, rating):
    assert throughput_rating(speed) == rating


def test_names_of_videos():
    assert VideoName.read("2_240_ori81") == VideoName(id=2, target=240, frames=81)
    assert str(VideoName(id=239, target=120, frames=129)) == "239_120_ori129"
    assert VideoName.read("2_240_81") is None
