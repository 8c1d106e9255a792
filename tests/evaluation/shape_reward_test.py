"""The reward of the small world, for scenes whose statements are known."""

import numpy as np
import pytest

from helios_jax.data.moving_shapes import MovingShapes
from helios_jax.distillation.rewards import Reward, reward_weights
from helios_jax.evaluation.shape_reward import ShapeReward

SCENES = MovingShapes(seed=3, size=2, frames=33, height=64, width=64, num_shapes=1)


def test_a_scene_gets_the_most_and_noise_the_least():
    reward = ShapeReward(names=("appearance", "motion", "surroundings"))
    assert isinstance(reward, Reward)
    scene = SCENES[0]
    noise = np.random.default_rng(0).integers(0, 256, scene["frames"].shape).astype(np.uint8)
    scores = reward(np.stack([scene["frames"], noise]), [scene["caption"]] * 2)
    assert {name: values.tolist() for name, values in scores.items()} == {name: [1.0, -1.0] for name in reward.names}
    np.testing.assert_allclose(reward_weights(scores, (("motion", 2.0),)), np.exp([2, -2]), rtol=1e-6)


def test_scores_count_the_statements_that_hold():
    scene = SCENES[0]
    wrong = scene["caption"].replace("lit from the left", "lit from the right").replace("small", "large")
    scores = ShapeReward()(scene["frames"][None], [wrong])
    # Size and light are wrong, each one of three statements: 2 * 2 / 3 - 1.
    assert {name: values.tolist() for name, values in scores.items()} == {
        name: pytest.approx([1 / 3]) for name in ("appearance", "surroundings")
    }


def test_the_style_decides_how_videos_are_read():
    scene = MovingShapes(seed=3, size=1, frames=33, height=64, width=64, num_shapes=1, style="textured")[0]
    scores = ShapeReward(style="textured")(scene["frames"][None], [scene["caption"]])
    assert {name: values.tolist() for name, values in scores.items()} == {"appearance": [1.0], "surroundings": [1.0]}
    assert ShapeReward()(scene["frames"][None], [scene["caption"]])["surroundings"][0] < 1


def test_requests_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="must be some of appearance, motion, surroundings"):
        ShapeReward(names=("beauty",))
    with pytest.raises(ValueError, match="1 samples need as many captions, got 2"):
        ShapeReward()(SCENES[0]["frames"][None], ["a", "b"])
