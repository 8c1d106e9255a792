"""Batches of sampled videos: what the pipeline is asked for, and what becomes of continuations."""

import types

import numpy as np
import pytest

from helios_jax.evaluation.metrics import VideoInfo
from helios_jax.evaluation.sources import Sampler
from helios_jax.sampling.settings import SampleSettings


class Stream(list):
    """Chunks that are also a context manager."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.clear()


class Pipe:
    """Streams chunks of 4 frames, the level of which is their number, and notes what it was asked for."""

    def __init__(self):
        self.asked = []

    def stream(self, prompts, negative_prompt, **options):
        self.asked.append((prompts, negative_prompt, options["settings"].num_frames, options["settings"].seed))
        self.clip = options["video"]
        chunks = range(-(-options["settings"].num_frames // 4))
        return Stream(types.SimpleNamespace(frames=np.full((len(prompts), 4, 8, 8, 3), n, np.uint8)) for n in chunks)


def video(name: str, frames: int = 12) -> VideoInfo:
    return VideoInfo(name=name, num_frames=frames, height=8, width=8, chunk_frames=4, prompt=f"text {name}")


def test_batches_have_the_seed_of_their_first_video():
    pipe = Pipe()
    sampler = Sampler(load=lambda: pipe, settings=SampleSettings(seed=5), negative_prompt="")
    batches = sampler.batches([video(str(n)) for n in range(5)], 2)
    shapes = [[chunk.shape for chunk in batch.chunks()] for batch in batches]
    assert shapes == [3 * [(2, 4, 8, 8, 3)], 3 * [(2, 4, 8, 8, 3)], 3 * [(1, 4, 8, 8, 3)]]
    assert pipe.asked == [
        (["text 0", "text 1"], "", 12, 5),
        (["text 2", "text 3"], "", 12, 7),
        (["text 4"], "", 12, 9),
    ]
    assert all(batch.sampled for batch in batches)


def test_videos_of_a_batch_have_one_length():
    sampler = Sampler(load=Pipe, settings=SampleSettings())
    with pytest.raises(ValueError, match=r"videos of \[4, 8\] frames cannot be sampled together: pass --batch=1"):
        sampler.batches([video("0", 4), video("1", 8)], 2)


def test_a_continuation_begins_with_its_clip():
    pipe, clips = Pipe(), {"0": np.full((8, 8, 8, 3), 100, np.uint8), "1": np.full((8, 8, 8, 3), 200, np.uint8)}
    sampler = Sampler(load=lambda: pipe, settings=SampleSettings(), clip_of=lambda video: clips[video.name])
    for batch, level in zip(sampler.batches([video("0", 16), video("1", 16)], 1), (100, 200), strict=True):
        chunks = list(batch.chunks())
        assert [int(chunk.max()) for chunk in chunks] == [level, level, 0, 1]
        assert pipe.clip.max() == level
    assert [asked[2] for asked in pipe.asked] == [8, 8]
