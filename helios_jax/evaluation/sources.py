"""Where the videos of an evaluation come from: sampled from a checkpoint, rendered scenes, or files."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from helios_jax.cli import wait_for_devices
from helios_jax.evaluation.metrics import VideoInfo
from helios_jax.evaluation.runner import Batch, Chunks
from helios_jax.media.decoding import read_frames
from helios_jax.media.files import ClipError
from helios_jax.media.timeline import read_timeline
from helios_jax.sampling.settings import SampleSettings
from helios_jax.typing import UInt8

if TYPE_CHECKING:
    from helios_jax.sampling.pipeline import HeliosPipeline

LoadPipeline = Callable[[], "HeliosPipeline"]
"""Loads the checkpoint when a video is first needed, and returns the same one afterwards."""

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sampler:
    """How videos are sampled.

    Attributes:
        load: Loads the checkpoint.
        settings: Settings; their length and seed are replaced.
        negative_prompt: What guidance leads away from; ``None``: the published text.
        lookahead: Chunks that the device works on ahead. 0 for timing: otherwise the device would work while videos are
            measured, which takes no time of sampling.
        clip_of: Gives the clip that a video continues and begins with, whole chunks, as many for all videos; ``None``:
            videos start from noise.
        on_step: Called after every step of sampling.
    """

    load: LoadPipeline
    settings: SampleSettings
    negative_prompt: str | None = None
    lookahead: int = 1
    clip_of: Callable[[VideoInfo], UInt8[np.ndarray, "F H W 3"]] | None = None
    on_step: Callable[[], None] = lambda: None

    def batches(self, videos: Sequence[VideoInfo], size: int) -> list[Batch]:
        """The videos, ``size`` at a time. Videos of a batch have the same length; its first number is its seed."""
        starts = range(0, len(videos), size)
        return [self._batch(tuple(videos[start : start + size]), self.settings.seed + start) for start in starts]

    def _batch(self, videos: tuple[VideoInfo, ...], seed: int) -> Batch:
        lengths = {video.num_frames for video in videos}
        if len(lengths) > 1:
            raise ValueError(f"videos of {sorted(lengths)} frames cannot be sampled together: pass --batch=1")
        settings = dataclasses.replace(self.settings, num_frames=lengths.pop(), seed=seed)
        return Batch(videos=videos, chunks=functools.partial(self._chunks, videos, settings), sampled=True)

    def _chunks(self, videos: tuple[VideoInfo, ...], settings: SampleSettings) -> Chunks:
        prompts = [video.prompt or "" for video in videos]
        clips = None
        if self.clip_of is not None:
            clips = np.stack([self.clip_of(video) for video in videos])
            length = clips.shape[1]
            yield from np.split(clips, length // videos[0].chunk_frames, axis=1)
            settings = dataclasses.replace(settings, num_frames=videos[0].num_frames - length)
        yield from stream_chunks(
            self.load(),
            prompts,
            settings,
            clips=clips,
            negative_prompt=self.negative_prompt,
            lookahead=self.lookahead,
            on_step=self.on_step,
        )


def stream_chunks(
    pipe: "HeliosPipeline",
    prompts: Sequence[str],
    settings: SampleSettings,
    *,
    clips: UInt8[np.ndarray, "B F H W 3"] | None = None,
    negative_prompt: str | None = None,
    lookahead: int = 1,
    on_step: Callable[[], None] = lambda: None,
) -> Chunks:
    """Samples one video for each prompt, in continuation of its clip if there are clips, and yields their chunks."""
    # Streamed, because ``__call__`` would cut the video to 4k + 1 frames.
    stream = pipe.stream(
        list(prompts),
        negative_prompt,
        video=clips,
        settings=settings,
        lookahead=lookahead,
        on_step=lambda _: on_step(),
    )
    with stream:
        try:
            for chunk in stream:
                yield chunk.frames
        except GeneratorExit:
            # Measuring has failed. Closing the stream drops the chunk that the device is working on.
            wait_for_devices()
            raise


def through_vae(pipe: "HeliosPipeline", frames: UInt8[np.ndarray, "B F H W 3"]) -> UInt8[np.ndarray, "B F H W 3"]:
    """Encodes and decodes clips in whole chunks."""
    return np.concatenate(list(vae_chunks(pipe, frames)), axis=1)


def vae_chunks(pipe: "HeliosPipeline", frames: UInt8[np.ndarray, "B F H W 3"]) -> Chunks:
    """Yields every chunk of clips after a pass through the VAE."""
    from helios_jax.models.vae import reconstruct
    from helios_jax.parallel.host_memory import fetched

    for chunk in np.split(frames, frames.shape[1] // pipe.chunk_frames, axis=1):
        with fetched(pipe.vae) as vae:
            yield np.asarray(reconstruct(vae, chunk))


def file_batch(file: Path, chunk_frames: int, *, prompt: str | None = None, most: int | None = None) -> Batch:
    """A video file as a batch of its own; reads only its header.

    Args:
        file: The file; its name without the suffix becomes the name of the video.
        chunk_frames: Frames that are read at a time.
        prompt: Its text.
        most: Frames to read; ``None``: all.

    Raises:
        FileNotFoundError: It does not exist.
        ValueError: It is no video, or damaged.
    """
    timeline = read_timeline(file)
    count = timeline.num_frames
    first = next(read_frames(file, 0, 1), None)
    if first is None or count == 0:
        raise ClipError(f"the video {file} has no frames")
    if timeline.damaged:
        raise ClipError(f"the video {file} is damaged after {count} frames; repair it or remove it")
    count = count if most is None else min(count, most)
    height, width, _ = first.shape
    video = VideoInfo(
        name=file.stem, num_frames=count, height=height, width=width, chunk_frames=chunk_frames, prompt=prompt
    )
    return Batch(videos=(video,), chunks=functools.partial(_file_chunks, file, count, chunk_frames), apart=True)


def _file_chunks(file: Path, count: int, chunk_frames: int) -> Iterator[np.ndarray]:
    frames: list[np.ndarray] = []
    for frame in read_frames(file, 0, count):
        frames.append(frame)
        if len(frames) == chunk_frames:
            yield np.stack(frames)[None]
            frames = []
    if frames:
        yield np.stack(frames)[None]


def find_videos(folder: Path | None, files: Sequence[Path]) -> list[Path]:
    """The videos in a folder, sorted by the numbers in their names, and further files.

    Raises:
        FileNotFoundError: The folder or a file does not exist, or there is no video in the folder.
        ValueError: Two videos have the same name without the suffix, and would share a record.
    """
    found = list(files)
    if missing := [file for file in files if not file.is_file()]:
        raise FileNotFoundError(f"the video {missing[0]} does not exist (looked in {Path.cwd()})")
    if folder is not None:
        if not folder.is_dir():
            raise FileNotFoundError(f"--videos_dir={folder} is not a folder (looked in {Path.cwd()})")
        inside = [file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES]
        if not inside:
            raise FileNotFoundError(f"--videos_dir={folder} holds no video ({', '.join(SUFFIXES)})")
        found = sorted(inside, key=_natural) + found
    seen: dict[str, Path] = {}
    for file in found:
        if other := seen.get(file.stem):
            raise ValueError(f"{other} and {file} would share the record {file.stem}.json; rename one")
        seen[file.stem] = file
    return found


def _natural(file: Path) -> tuple[int, str]:
    digits = file.stem.partition("_")[0]
    return (int(digits) if digits.isdecimal() else 1 << 31, file.name)
