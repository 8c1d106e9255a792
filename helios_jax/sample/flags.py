"""The arguments of ``helios-sample``. Nothing heavy is imported, so that ``--help`` answers at once."""

import argparse
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

from helios_jax.arguments import Parser, finite, path, shortened, whole, wholes
from helios_jax.checkpoints.lora_argument import parse_lora_argument
from helios_jax.checkpoints.parking import PARKABLE, parked_names
from helios_jax.checkpoints.shipped import HELIOS_TINY, default_checkpoint
from helios_jax.checkpoints.sources import defaults_of
from helios_jax.sampling.settings import (
    MAX_FRAMES,
    MAX_GUIDANCE,
    MAX_SEED,
    MAX_SIDE,
    MAX_STEPS,
    MAX_TEXT_TOKENS,
    Fit,
    SampleSettings,
    one_or_many,
)

DESCRIPTION = """\
Video from text, from an image, or continuing a clip.

    helios-sample --prompt="A large red circle glides slowly to the left." --out=circle.mp4    (with helios-tiny)
    helios-sample --model=BestWishYsh/Helios-Distilled --prompt="A red fox trots through fresh snow." --out=fox.mp4
    helios-sample --model=CKPT --image=cat.png --prompt="The cat stretches." --out=cat.mp4
    helios-sample --model=CKPT --video=car.mp4 --prompt="A yellow car on a mountain road." --out=longer.mp4
    helios-sample --model=CKPT --prompt_file=prompts.csv --out=folder/
    helios-sample --model=CKPT --prompt="Waves on a beach." --out=endless.mp4 --stream --save_state=waves.state
    helios-sample --model=CKPT --resume=waves.state --out=more.mp4 --stream
    helios-sample --model=CKPT --warmup

With fox.mp4, a contact sheet (fox.sheet.png) and a record of all settings (fox.helios.json) are written. Files that
this program did not write are never replaced. Frames are on disk as soon as their chunk is finished, so an interrupted
run leaves a playable file. Invalid input is reported before weights are loaded.

A prompt file gives one video per line (.txt) or per id (.csv with the columns id, prompt and, for several successive
prompts in one video, prompt_index; the columns negative_prompt, image, video and seed override the flags, with paths
relative to the file). Its videos have seeds of their own: --seed plus a number that follows from the id. A second run
skips the videos that are finished, and two processes with one --out folder share the work.

With --stream the video has no end unless --num_frames is given, and each line typed on standard input becomes the
prompt from the next chunk on. Ctrl-D, the end of the input, finishes the video.

--save_state keeps what a video is continued from, and --resume continues it tomorrow, bit for bit as it would have gone
on, in a new file. A resumed video keeps its settings and its prompt; --prompt gives it a new one, and --num_frames
counts the frames before.

Compiled programs are kept on disk for later runs. --warmup compiles for the given size before
anything else and reports the time; without a prompt the command ends there.
"""

DEFAULTS = SampleSettings()

_NOT_GIVEN = object()


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line; ``argv[0]`` is the program. Exits with code 2 and one line if it cannot be read.

    Returns:
        The value of every flag, and as ``given`` the names of the sample settings that were given.
    """
    parser = Parser(prog="helios-sample", description=DESCRIPTION)

    def add(name: str, help: str, **options: Any) -> None:
        parser.add_argument(f"--{name}", help=help, **options)

    def add_whole(name: str, help: str, at_least: int, at_most: int | None = None, default: int | None = None) -> None:
        kind = whole(f"--{name}", at_least=at_least, at_most=at_most)
        add(name, help if default is None else f"{help} (default {default})", type=kind, default=default)

    flag = argparse.BooleanOptionalAction
    dtypes = {"choices": ("auto", "bfloat16", "float32"), "default": "auto"}
    add("model", f"checkpoint folder in either layout, hub id, or {HELIOS_TINY} (the default where it is installed)")
    add("revision", "branch, tag or commit of a hub id (a token comes from HF_TOKEN or 'hf auth login')")
    add("cache_dir", "folder for downloads (default: the hub's, or HF_HOME)", type=path("--cache_dir"))
    add("out", "mp4 to write; with --prompt_file a folder", type=path("--out"))
    add("prompt", "text of the video")
    add("prompt_file", "txt or csv with the texts of many videos", type=path("--prompt_file"))
    add("negative_prompt", "used with guidance only (default: the published one)")
    add("image", "image to start from (I2V)", type=path("--image"))
    add("video", "clip to continue, at least 33 frames (V2V)", type=path("--video"))
    add(
        "fit",
        "an image or clip of another aspect (default stretch, as published)",
        choices=get_args(Fit),
        default="stretch",
    )
    add(
        "video_fps",
        "frames per second to which a clip is resampled, or 'stored' (default 24)",
        type=_video_fps,
        default=24.0,
    )
    add_whole(
        "num_frames", f"frames wanted, rounded up to whole chunks of 33 (default {DEFAULTS.num_frames})", 1, MAX_FRAMES
    )
    add("exact_frames", "cut the video to --num_frames frames (default: 4k + 1 as published)", action="store_true")
    add_whole("height", f"pixel rows (default: the model's, published {DEFAULTS.height})", 1, MAX_SIDE)
    add_whole("width", f"pixel columns (default: the model's, published {DEFAULTS.width})", 1, MAX_SIDE)
    add("steps", "network calls per level, 2,2,2 or one number for Base (default: the model's)", type=_steps)
    guidance = finite("--guidance_scale", at_least=-MAX_GUIDANCE, at_most=MAX_GUIDANCE)
    add("guidance_scale", "guidance is on above 1 (default: the model's)", type=guidance)
    add("amplify_first_chunk", "twice the steps in the first chunk (default: the model's)", action=flag)
    add("skip_first_chunk", "take the anchor from the second chunk", action=flag, default=False)
    add("keep_first_frame", "keep the first frame in the context", action=flag, default=True)
    add_whole("chunks_per_prompt", "chunks of each prompt of a csv file", 1, 10**6, 7)
    add_whole("blend_chunks", "chunks over which a new prompt is blended in", 0, 10**6, 3)
    tokens = f"length that texts are padded or cut to (default: the model's, published {DEFAULTS.max_text_tokens})"
    add_whole("max_text_tokens", tokens, 1, MAX_TEXT_TOKENS)
    add_whole("seed", "seed of all draws, or -1 to draw one, which is printed", -1, MAX_SEED, 0)
    add("lora", "LoRA file to merge, FILE or FILE:SCALE; may be repeated", type=_lora, action="append", default=[])
    add("merge_lora", "merge LoRA files into the weights, or keep their small updates apart", action=flag, default=True)
    add(
        "dtype",
        "compute dtype of transformer and text encoder (default auto: float32 on CPUs)",
        **dtypes,
    )
    add("vae_dtype", "compute dtype of the VAE (default auto)", **dtypes)
    add(
        "park",
        f"networks that wait in host memory while they are not used, {' or '.join(PARKABLE)}, or both with a comma",
        type=_park,
        default=(),
    )
    add_whole("vae_slice_frames", "latent frames the VAE handles at a time, to save memory", 1)
    add("fps", "frames per second of the file, such as 24, 29.97 or 30000/1001 (default 24)", type=_fps, default=24)
    add_whole("enlarge", "factor by which frames are enlarged without blur (default: up to 256 pixels)", 1, 64)
    add("stream", "no end unless --num_frames is given; lines on standard input are new prompts", action="store_true")
    add("warmup", "compile before sampling; with no prompt, only compile", action="store_true")
    add(
        "cache",
        "folder for compiled programs (default: helios_jax in the user's cache folder)",
        type=path("--cache"),
    )
    add("save_state", "file that the video can be continued from, written after each chunk", type=path("--save_state"))
    add("resume", "continue the video of a --save_state file in a new file", type=path("--resume"))
    add("overwrite", "make finished videos again, in place of the files of the earlier run", action="store_true")
    add("allow_cpu", "run a model on a CPU that is made for GPUs: hours per second of video", action="store_true")
    args = parser.parse_args(argv[1:])
    # argparse leaves alone what a namespace holds already: flags that were not given keep the mark.
    marked = parser.parse_args(argv[1:], argparse.Namespace(**dict.fromkeys(vars(DEFAULTS), _NOT_GIVEN)))
    args.given = frozenset(
        name for name in vars(DEFAULTS).keys() & vars(args).keys() if getattr(marked, name) is not _NOT_GIVEN
    )
    return args


def fill_in(args: argparse.Namespace) -> None:
    """Replaces a model, a size and a length of texts that are not given by the default ones.

    Raises:
        ValueError: No model is given, and there is no default one; or its ``sampling.json`` is damaged.
        FileNotFoundError: The model does not exist.
    """
    if args.model is None:
        args.model = default_checkpoint()
    if args.model is None:
        raise ValueError(f"give --model, a checkpoint folder or hub id: this installation has no {HELIOS_TINY}")
    defaults = defaults_of(args.model)
    for name in _OF_THE_MODEL:
        if getattr(args, name) is None:
            setattr(args, name, getattr(defaults, name))


_OF_THE_MODEL = ("height", "width", "max_text_tokens")
"""Flags whose default depends on the model."""


def settings_of(args: argparse.Namespace, *, seed: int) -> SampleSettings:
    """The sample settings from flags that have the name of a field, with the seed of one video."""
    names = vars(DEFAULTS).keys() & vars(args).keys() - {"seed"}
    given = {name: getattr(args, name) for name in names}
    for name in _OF_THE_MODEL:
        given[name] = getattr(DEFAULTS, name) if given[name] is None else given[name]
    return SampleSettings(seed=seed, **given)


def _steps(text: str) -> int | tuple[int, ...] | None:
    """N, or N,N,N for a pyramid."""
    return one_or_many(wholes("--steps", at_least=1, at_most=MAX_STEPS)(text))


def _fps(text: str) -> int | float | Fraction:
    """Parses the rate of a video file: a whole number, a decimal number or a ratio."""
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{0,9}|/[1-9][0-9]{0,5})?", text.strip()):
        raise argparse.ArgumentTypeError(f"--fps={shortened(text)} must be a number such as 24, 29.97 or 30000/1001")
    rate = Fraction(text.strip())
    if not Fraction(1, 10) <= rate <= 1000:
        raise argparse.ArgumentTypeError(f"--fps={shortened(text)} must be from 0.1 to 1000 frames per second")
    if rate.denominator == 1:
        return int(rate)
    return rate if "/" in text else float(text)


def _video_fps(text: str) -> float | None:
    """A rate, or ``None`` for the frames as they are stored."""
    return None if text == "stored" else finite("--video_fps", at_least=0.1, at_most=1000)(text)


def _park(text: str) -> tuple[str, ...]:
    """NAME or NAME,NAME."""
    try:
        return parked_names([name.strip() for name in text.split(",")])
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"--{error}") from error


def _lora(text: str) -> tuple[Path, float]:
    """FILE or FILE:SCALE."""
    try:
        return parse_lora_argument(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"--{error}") from error
