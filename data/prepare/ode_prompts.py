"""The prompts whose trajectories are recorded, with a seed for each.

The draws of a video follow from its seed alone,

    seed = (the job's seed + CRC-32 of the uid) mod 2^64, or the seed that the prompt file gives,         (1)

as in ``helios-sample --prompt_file``, so a record depends neither on the other prompts nor on how the work is divided.
(The published recordings start from the same noise for every prompt.)
"""

import dataclasses
import zlib
from typing import Any

from helios_jax.sampling.prompt_files import PromptedVideo, read_prompt_file
from helios_jax.sampling.prompts import NEGATIVE_PROMPT
from helios_jax.sampling.settings import MAX_SEED
from helios_jax.typing import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class OdePrompt:
    """A prompt to record.

    Attributes:
        uid: Its name.
        text: The prompt.
        negative: The negative prompt for guidance.
        seed: Seed of its draws.
    """

    uid: str
    text: str
    negative: str
    seed: int

    @property
    def identity(self) -> list[Any]:
        """See ``job.Named``."""
        return [self.uid, self.text, self.negative, self.seed]


def read_ode_prompts(file: Path, *, seed: int, negative_prompt: str | None) -> list[OdePrompt]:
    """The prompts of a file (``sampling.prompt_files``), with seeds by (1).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a prompt file, or a video has several prompts, an image or a clip.
    """
    return [_ode_prompt(video, file, seed, negative_prompt) for video in read_prompt_file(file)]


def _ode_prompt(video: PromptedVideo, file: Path, seed: int, negative: str | None) -> OdePrompt:
    where = f"{file}, line {video.line}"
    if len(video.prompts) > 1 or video.image is not None or video.video is not None:
        raise ValueError(f"{where}: trajectories are recorded from one prompt, without an image or a clip")
    if video.seed is not None and video.seed < 0:
        raise ValueError(f"{where}: seed={video.seed} would be drawn anew by every run; give a seed of at least 0")
    own = (seed + zlib.crc32(video.name.encode())) % (MAX_SEED + 1) if video.seed is None else video.seed
    given = negative if video.negative_prompt is None else video.negative_prompt
    return OdePrompt(
        uid=video.name, text=video.prompts[0], negative=NEGATIVE_PROMPT if given is None else given, seed=own
    )
