"""Data sets as settings: memory instead of files, parts of scenes, refusals."""

import itertools

import numpy as np
import pytest

from helios_jax.checkpoints.random import write_character_tokenizer
from helios_jax.data.helios_latents.record import LatentRecord
from helios_jax.data.helios_latents.writer import LatentWriter
from helios_jax.data.moving_shapes import MovingShapes as Scenes
from helios_jax.training.datasets import Latents, MovingShapes


def test_memory_in_place_of_files_changes_no_batch(tmp_path):
    write_character_tokenizer(tmp_path / "parts")
    generator = np.random.default_rng(0)
    for folder in ("a", "b"):
        records = [
            LatentRecord(
                uid=f"{folder}{number}",
                caption=f"clip {number}",
                fps=24.0,
                height=16,
                width=16,
                latents=generator.standard_normal((3, 9, 2, 2, 4)).astype(np.float32),
                anchor=generator.standard_normal((2, 2, 4)).astype(np.float32),
                embeds=np.zeros((0, 0), np.float32),
            )
            for number in range(5)
        ]
        writer = LatentWriter(tmp_path / folder, {(2, 2): 1}, {})
        writer.write(((2, 2), 0), records)
        assert writer.finish()
    options = {"tokenizer": str(tmp_path / "parts"), "tokens": 12, "drop_text": 0.2}
    folders = (str(tmp_path / "a"), str(tmp_path / "b"))
    loaders = [
        Latents(folders=folders, in_memory=in_memory, **options).batches(4, (0, 1), 7) for in_memory in (False, True)
    ]
    for _ in range(10):
        one, other = map(next, loaders)
        for name in ("target", "history", "anchor"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        np.testing.assert_array_equal(one.text.tokens, other.text.tokens)
        np.testing.assert_array_equal(one.text.lengths, other.text.lengths)


def test_clips_are_parts_of_scenes():
    data = MovingShapes(scenes=3, frames=5, length=9, height=16, width=16, world=4, num_shapes=2)
    scenes = Scenes(seed=4, size=3, frames=9, height=16, width=16, num_shapes=2)
    parts = {
        scenes[number]["frames"][start : start + 5].tobytes(): (number, start)
        for number in range(3)
        for start in range(5)
    }
    batches = itertools.islice(iter(data.batches(3, (0, 1), 0)), 20)
    found = {parts[clip.tobytes()] for batch in batches for clip in batch.frames}
    assert {number for number, _ in found} == {0, 1, 2}
    assert {start for _, start in found} == {0, 1, 2, 3, 4}
    whole = MovingShapes(scenes=3, frames=9, height=16, width=16, world=4, num_shapes=2).batches(3, (0, 1), 0)
    assert {clip.tobytes() for clip in next(whole).frames} == {
        scenes[number]["frames"].tobytes() for number in range(3)
    }


def test_clips_have_the_style_that_is_asked_for():
    data = MovingShapes(scenes=2, frames=5, height=16, width=16, style="textured")
    scenes = Scenes(seed=0, size=2, frames=5, height=16, width=16, style="textured")
    clips = {clip.tobytes() for clip in next(data.batches(2, (0, 1), 0)).frames}
    assert clips == {scenes[number]["frames"].tobytes() for number in range(2)}


def test_embeddings_cannot_be_dropped():
    with pytest.raises(ValueError, match=r"drop_text=0.1 must be in \[0, 1\), and 0 without a tokenizer"):
        Latents(folders=("a",), drop_text=0.1)
