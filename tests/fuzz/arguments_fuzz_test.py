"""Arguments of ``helios-sample`` that are wrong, extreme or dangerous: a clear end, and no file of anyone else changes.

Each case begins in a folder with files of a user. The command must end with a short message, or make the video.
"""

import os
import pathlib
import random
import shutil

import numpy as np
import pytest
from verdict import verdict

from helios_jax.checkpoints.random import write_random_checkpoint
from helios_jax.media.reading import load_video

SMALL = ("--height=64", "--width=64", "--steps=1,1,1", "--num_frames=33", "--max_text_tokens=16")
USUAL = ("--model=C", "--prompt=fox", "--out=out.mp4", *SMALL)

WRONG = [
    # Values of flags.
    ("--height=64.0",),
    ("--height=0",),
    ("--height=-64",),
    ("--height=100",),
    ("--height=99999999999999999999",),
    ("--width=",),
    ("--width=６４x",),
    ("--width=nan",),
    ("--steps=1,a,1",),
    ("--steps=",),
    ("--steps=1,1",),
    ("--steps=0,1,1",),
    ("--steps=1,1,1,",),
    ("--steps=1.5,1,1",),
    ("--steps=" + "9" * 5000,),
    ("--num_frames=0",),
    ("--num_frames=-1",),
    ("--num_frames=33.5",),
    ("--guidance_scale=nan",),
    ("--guidance_scale=inf",),
    ("--guidance_scale=two",),
    ("--fps=nan",),
    ("--fps=0",),
    ("--fps=-24",),
    ("--fps=1e9",),
    ("--fps=24/0",),
    ("--seed=-2",),
    ("--seed=18446744073709551616",),
    ("--seed=1.0",),
    ("--max_text_tokens=0",),
    ("--vae_slice_frames=0",),
    ("--blend_chunks=-1",),
    ("--chunks_per_prompt=0",),
    ("--dtype=float16",),
    ("--lora=nothing.safetensors",),
    ("--lora=photo.png:nan",),
    ("--lora=photo.png:inf",),
    ("--lora=:1",),
    ("--lora=",),
    # Names of flags.
    ("--promt=a",),
    ("--vid=clip.mp4",),
    ("--steps", "1,1,1", "stray"),
    ("--no-overwrite",),
    # Inputs.
    ("--image=nothing.png",),
    ("--image=notes.txt",),
    ("--image=C",),
    ("--image=",),
    ("--image=photo.png", "--video=clip.mp4"),
    ("--video=photo.png",),
    ("--video=notes.txt",),
    ("--model=nowhere",),
    ("--model=notes.txt",),
    ("--model=",),
    ("--revision=main",),
    # Outputs.
    ("--out=photo.png",),
    ("--out=clip.mp4",),
    ("--out=clip.mp4", "--overwrite"),
    ("--out=folder.mp4",),
    ("--out=folder.mp4", "--overwrite"),
    ("--out=notes.txt/out.mp4",),
    ("--out=/proc/nothing/out.mp4",),
    ("--out=" + "a" * 251 + ".mp4",),
    ("--out=" + "a" * 247 + ".mp4",),
    ("--out=.mp4",),
    ("--out=",),
    ("--out=bad\0name.mp4",),
    ("--out=~nobody_of_this_name/out.mp4",),
    ("--out=dangling.mp4", "--overwrite"),
    ("--out=linked.mp4", "--overwrite"),
    ("--out=hard.mp4", "--overwrite"),
    ("--video=clip.mp4", "--out=./folder.mp4/../clip.mp4", "--overwrite"),
    ("--video=linked.mp4", "--out=clip.mp4", "--overwrite"),
    ("--image=taken.sheet.png", "--out=taken.mp4"),
    ("--out=taken.mp4",),
    ("--out=taken.mp4", "--overwrite"),
    ("--out=recorded.mp4", "--overwrite"),
    ("--out=claimed.mp4", "--overwrite"),
    ("--out=pipe.mp4", "--overwrite"),
    ("--prompt_file=nothing.csv", "--out=folder"),
    ("--prompt_file=prompts.txt",),
    ("--prompt_file=C", "--out=new"),
]

RIGHT = [
    ("--fps=29.97",),
    ("--fps=24000/1001",),
    ("--seed=18446744073709551615",),
    ("--seed=-1",),
    ("--image=photo.png", "--out=photo.mp4"),
    ("--out=new/folder/out.mp4",),
    ("--out=" + "a" * 200 + ".mp4",),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "C"
    write_random_checkpoint(folder)
    return folder


@pytest.fixture
def home(checkpoint, tmp_path, monkeypatch) -> pathlib.Path:
    """A folder with files of a user."""
    from PIL import Image

    (tmp_path / "C").symlink_to(checkpoint)
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "photo.png")
    shutil.copy(tmp_path / "photo.png", tmp_path / "taken.sheet.png")
    (tmp_path / "clip.mp4").write_bytes(b"a clip of the user")
    (tmp_path / "notes.txt").write_text("notes\n")
    (tmp_path / "prompts.txt").write_text("a fox\n")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "dangling.mp4").symlink_to("nothing.mp4")
    (tmp_path / "linked.mp4").symlink_to("clip.mp4")
    os.link(tmp_path / "clip.mp4", tmp_path / "hard.mp4")
    (tmp_path / "recorded.helios.json").write_text('{"mine": 1}')
    (tmp_path / "claimed.unfinished.json").write_text("[]")
    os.mkfifo(tmp_path / "pipe.mp4")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file by its path; links and folders by what they are."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.fsencode(os.readlink(path))
        else:
            found[name] = path.read_bytes() if path.is_file() else b"no file"
    return found


@pytest.mark.slow
@pytest.mark.parametrize("arguments", WRONG, ids=lambda arguments: " ".join(arguments)[:60].replace("\0", "0"))
def test_wrong_arguments_change_nothing(home, arguments):
    before = contents(home)
    result = verdict([*USUAL, *arguments])
    assert result.fault is None
    assert result.code in (1, 2)
    assert result.seconds < 3
    assert contents(home) == before


@pytest.mark.slow
@pytest.mark.parametrize("arguments", RIGHT, ids=lambda arguments: " ".join(arguments)[:60])
def test_unusual_arguments_make_a_video(home, arguments):
    before = contents(home)
    result = verdict([*USUAL, *arguments], limit=600)
    assert (result.code, result.message) == (0, "")
    out = next(text for text in reversed([*USUAL, *arguments]) if text.startswith("--out=")).removeprefix("--out=")
    assert len(load_video(home / out, 64, 64)) == 33
    after = contents(home)
    assert {name: after[name] for name in before} == before


VALUES = [
    "",
    "0",
    "-1",
    "1e400",
    "nan",
    "null",
    "True",
    "64",
    "a b",
    "'",
    "../x",
    "/",
    "~",
    ":",
    ",",
    "1,1,1",
    "é",
    "%s",
]
FLAGS = ["height", "width", "steps", "num_frames", "guidance_scale", "fps", "seed", "image", "video", "lora", "model"]
FLAGS += ["prompt_file", "max_text_tokens", "vae_slice_frames", "cache", "revision", "dtype", "blend_chunks"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_random_values_end_clearly(home, seed):
    draws = random.Random(seed)
    arguments = [f"--{draws.choice(FLAGS)}={draws.choice(VALUES)}" for _ in range(draws.randint(1, 3))]
    before = contents(home)
    result = verdict([*USUAL, *arguments], limit=600)
    assert result.fault is None, arguments
    after = contents(home)
    assert {name: after.get(name) for name in before} == before
    if result.code:
        assert after == before
        assert result.seconds < 3
