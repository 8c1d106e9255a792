"""Damaged pictures and clips: read, or refused in one line that names the file; no foreign error and no hang."""

import pathlib
import time
import warnings

import av
import numpy as np
import pytest
from PIL import Image
from verdict import verdict

from helios_jax.checkpoints.random import write_random_checkpoint
from helios_jax.data.prepare.file_clips import FileClip, ReadOptions
from helios_jax.media.reading import load_ends, load_image, load_video

PICTURES = ("rgb.png", "alpha.png", "grey16.png", "palette.gif", "photo.jpg", "photo.webp", "photo.bmp", "photo.tiff")
CLIPS = ("h264.mp4", "h264.mkv", "vp9.webm", "mpeg4.avi", "h264.mov", "h264.ts")
MUTATIONS = ("cut", "bit", "bytes", "zeros", "header", "shuffle", "empty", "text", "renamed", "doubled")
SECONDS = 20
"""Most time that reading one file may take, on a busy machine."""

pytestmark = pytest.mark.slow


def scene(frames: int) -> np.ndarray:
    """A drifting texture, uint8 [F, 48, 64, 3]."""
    noise = np.random.default_rng(5).integers(0, 256, (12, 16, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    return np.stack([np.roll(noise, 2 * k, axis=1) for k in range(frames)])


def write_clip(path: pathlib.Path) -> None:
    codec = {"vp9": "libvpx-vp9", "h264": "libx264", "mpeg4": "mpeg4"}[path.stem]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24, options={"g": "12"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for pixels in scene(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def write_picture(path: pathlib.Path) -> None:
    pixels = scene(1)[0]
    if path.stem == "grey16":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(path)
    elif path.stem == "alpha":
        Image.fromarray(np.concatenate([pixels, pixels[..., :1]], axis=-1)).save(path)
    else:
        Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("originals")
    for name in PICTURES:
        write_picture(folder / name)
    for name in CLIPS:
        write_clip(folder / name)
    return {name: (folder / name).read_bytes() for name in PICTURES + CLIPS}


def mutated(content: bytes, mutation: str, rng: np.random.Generator) -> bytes:
    """The content with one kind of damage."""
    data, size = bytearray(content), len(content)
    match mutation:
        case "cut":
            return content[: int(rng.integers(1, size))]
        case "bit":
            data[int(rng.integers(size))] ^= 1 << int(rng.integers(8))
        case "bytes":
            for place in rng.integers(0, size, 40):
                data[place] = int(rng.integers(256))
        case "zeros":
            start = int(rng.integers(size))
            data[start : start + 200] = bytes(len(data[start : start + 200]))
        case "header":
            for place in rng.integers(0, min(size, 600), 4):
                data[place] = int(rng.integers(256))
        case "shuffle":
            middle = int(rng.integers(size))
            return content[middle:] + content[:middle]
        case "empty":
            return b""
        case "text":
            return b"ffconcat version 1.0\nfile /etc/hostname\n"
        case "doubled":
            return content + content
    return bytes(data)


def damaged_file(folder: pathlib.Path, name: str, content: bytes, mutation: str, seed: int) -> pathlib.Path:
    rng = np.random.default_rng([seed, *mutation.encode(), *name.encode()])
    path = folder / f"{mutation}{seed}-{name}"
    if mutation == "renamed":
        path = path.with_suffix(str(rng.choice([".png", ".jpg", ".mp4", ".mkv", ".txt"])))
    path.write_bytes(mutated(content, mutation, rng))
    return path


def fault_of(path: pathlib.Path, *, picture: bool) -> str | None:
    """What is wrong with the way in which a file is read; ``None`` if nothing is."""
    clip = FileClip(uid="a", caption="A.", stored_fps=0, path=path, options=ReadOptions(fit="stretch"))
    readers = {
        "image": lambda: load_image(path, 32, 48),
        "ends": lambda: load_ends(path, 32, 48, last=9, fps=24)[:1],
        "video": lambda: load_video(path, 32, 48, max_frames=60),
        "clip": lambda: clip.read((32, 48), 60),
    }
    for name, read in readers.items():
        if picture != (name == "image"):
            continue
        start = time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                pixels = read()
            if pixels.shape[-3:] != (32, 48, 3) or not np.isfinite(pixels).all():
                return f"{name}: pixels of shape {pixels.shape}"
        except (ValueError, OSError) as error:
            if path.name not in str(error) or "\n" in str(error).strip():
                return f"{name}: {type(error).__name__}: {error}"
        except Exception as error:
            return f"{name}: {type(error).__name__}: {error}"
        if time.monotonic() - start > SECONDS:
            return f"{name}: took {time.monotonic() - start:.1f} s"
    return None


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("name", PICTURES + CLIPS)
def test_damaged_files(tmp_path, originals, name, mutation):
    for seed in range(2):
        path = damaged_file(tmp_path, name, originals[name], mutation, seed)
        assert fault_of(path, picture=name in PICTURES) is None


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    write_random_checkpoint(folder)
    return folder


LIMIT = 300
"""Seconds that a run may take; the first one compiles."""

SMALL = ("--prompt=a", "--height=64", "--width=64", "--steps=1,1,1", "--num_frames=33", "--max_text_tokens=16")
SAMPLES = [
    ("image", "rgb.png", "cut"),
    ("image", "photo.jpg", "bytes"),
    ("image", "photo.webp", "header"),
    ("image", "palette.gif", "zeros"),
    ("image", "alpha.png", "empty"),
    ("image", "photo.tiff", "shuffle"),
    ("image", "h264.mp4", "renamed"),
    ("video", "rgb.png", "renamed"),
    ("video", "h264.mp4", "cut"),
    ("video", "h264.mkv", "bytes"),
    ("video", "vp9.webm", "zeros"),
    ("video", "mpeg4.avi", "header"),
    ("video", "h264.mov", "text"),
    ("video", "h264.ts", "shuffle"),
]


@pytest.mark.parametrize(("flag", "name", "mutation"), SAMPLES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_samples_from_damaged_files(tmp_path, originals, model, flag, name, mutation):
    """The command makes a video or says in a line what is wrong with which file, before it writes anything."""
    path = damaged_file(tmp_path, name, originals[name], mutation, seed=7)
    content = path.read_bytes()
    out = tmp_path / "out"
    out.mkdir()
    result = verdict([f"--model={model}", *SMALL, f"--{flag}={path}", f"--out={out / 'a.mp4'}"], limit=LIMIT)
    assert result.fault is None
    assert path.read_bytes() == content
    if result.code:
        assert path.name in result.message
        assert not list(out.iterdir())
    else:
        assert load_video(out / "a.mp4", 64, 64).shape == (33, 64, 64, 3)
