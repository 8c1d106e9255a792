"""Records of finished videos, compared with the video that is asked for."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from helios_jax.sample.flags import parse
from helios_jax.sample.jobs import Job, plan_jobs
from helios_jax.sample.records import content_digest, differences, finished_record

NOW = {
    "helios_jax": "0.2",
    "prompt": "fox",
    "negative_prompt": None,
    "model": "owner/name",
    "revision": "abc",
    "lora": [],
    "image": "/a/cat.png",
    "video": None,
    "seed": 3,
    "steps": [2, 2, 2],
    "guidance_scale": 1.0,
    "height": 64,
    "width": 64,
    "num_frames": 40,
    "frames": 65,
    "fps": 24,
    "dtype": "bfloat16",
    "max_text_tokens": 512,
    "sha256": {"image": "11", "lora": []},
}


def changes(then: dict, now: dict, *, seed_drawn: bool = False) -> list[str]:
    return differences(then, now, seed_drawn=seed_drawn)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prompt", "boat"),
        ("prompt", {"prompts": ["fox", "boat"], "chunks_per_prompt": 7, "blend_chunks": 3}),
        ("negative_prompt", "fog"),
        ("model", "owner/other"),
        ("revision", "def"),
        ("seed", 4),
        ("steps", [1, 1, 1]),
        ("guidance_scale", 2.0),
        ("height", 128),
        ("frames", 33),
        ("fps", 29.97),
        ("dtype", "float32"),
        ("max_text_tokens", 16),
    ],
)
def test_every_setting_counts(key, value):
    assert changes(NOW, NOW) == []
    (text,) = changes(NOW, {**NOW, key: value})
    assert text == f"{key} was {json.dumps(NOW[key])}, now {json.dumps(value)[:48]}" + "..." * (len(str(value)) > 48)


def test_what_does_not_change_the_video():
    other = {"helios_jax": "0.3", "seconds": 5.0, "device": "x", "versions": {"jax": "1"}, "num_frames": 60}
    assert changes({**NOW, **other}, NOW) == []
    assert changes(NOW, {**NOW, "seed": 99}, seed_drawn=True) == []


def test_files_count_by_their_content():
    moved = {**NOW, "image": "/b/cat.png"}
    assert changes(NOW, moved) == []
    edited = {**NOW, "sha256": {"image": "22", "lora": []}}
    assert changes(NOW, edited) == ['image was "/a/cat.png", now "/a/cat.png" with other content']
    one = {**NOW, "lora": [["/a/x.safetensors", 1.0]], "sha256": {"image": "11", "lora": ["77"]}}
    assert changes(one, {**one, "lora": [["/b/y.safetensors", 1.0]]}) == []
    assert len(changes(one, {**one, "lora": [["/a/x.safetensors", 0.5]]})) == 1
    assert len(changes(one, NOW)) == 1
    assert len(changes(NOW, one)) == 1
    assert len(changes(NOW, {**NOW, "image": None, "sha256": {"lora": []}})) == 1


def test_records_of_earlier_versions():
    """Version 0.1 wrote no digests, fewer settings, and a schedule for every prompt of a file."""
    keys = ["helios_jax", "model", "lora", "video", "seed", "steps", "height", "width", "frames", "fps"]
    then = {key: NOW[key] for key in keys} | {"image": None}
    then["prompt"] = {"prompts": ["fox"], "chunks_per_prompt": 7, "blend_chunks": 3}
    now = {**NOW, "image": None, "sha256": {"lora": []}}
    assert changes(then, now) == []
    assert len(changes({**then, "seed": 0}, now)) == 1


def job(folder: pathlib.Path) -> Job:
    (one,) = plan_jobs(parse(["x", "--model=C", "--prompt=fox", f"--out={folder / 'fox.mp4'}"]))
    return one


def test_which_record_counts(tmp_path):
    one = job(tmp_path)
    record = {key: NOW[key] for key in ("helios_jax", "prompt", "seed", "steps", "height", "width", "frames")}
    (tmp_path / "fox.helios.json").write_text(json.dumps(record))
    assert finished_record(one) is None  # a record without its video
    (tmp_path / "fox.mp4").write_bytes(b"")
    assert finished_record(one) is None
    (tmp_path / "fox.mp4").write_bytes(b"x")
    assert finished_record(one) == record
    (tmp_path / "fox.helios.json").rename(tmp_path / "fox.json")  # as version 0.1 named it
    assert finished_record(one) == record
    (tmp_path / "fox.json").write_text('{"mine": 1}')
    assert finished_record(one) is None
    (tmp_path / "fox.helios.json").write_text('{"helios_jax": "0.2"}')
    with pytest.raises(ValueError, match=r"fox\.helios\.json lacks \['prompt', 'seed'"):
        finished_record(one)


def test_seeds_of_a_prompt_file(tmp_path):
    def seeds(*arguments: str) -> dict[str, tuple[int, bool]]:
        jobs = plan_jobs(
            parse(["x", "--model=C", f"--prompt_file={tmp_path / 'p.csv'}", f"--out={tmp_path / 'o'}", *arguments])
        )
        return {each.outputs.video.stem: (each.settings.seed, each.seed_drawn) for each in jobs}

    (tmp_path / "p.csv").write_text("id,prompt,seed\na,fox,\nb,fox,\nc,fox,12\nd,fox,-1\n")
    first = seeds()
    # CRC-32 of "a" and "b".
    assert [first[name] for name in "abc"] == [(0xE8B7BE43, False), (0x71BEEFF9, False), (12, False)]
    assert first["d"][1]
    assert seeds("--seed=5")["a"] == (0xE8B7BE43 + 5, False)
    assert seeds(f"--seed={2**64 - 1}")["a"] == (0xE8B7BE42, False)
    assert seeds("--seed=5")["c"] == (12, False)
    assert [drawn for _, drawn in seeds("--seed=-1").values()] == [True, True, False, True]
    # Lines that are added or moved leave the other videos as they are.
    (tmp_path / "p.csv").write_text("id,prompt\nnew,boat\nb,fox\na,fox\n")
    assert {name: seed for name, seed in seeds().items() if name in "ab"} == {name: first[name] for name in "ab"}


def test_the_row_of_a_video_overrides_the_flags(tmp_path):
    file = tmp_path / "p.csv"
    file.write_text("id,prompt,image,negative_prompt\na,fox,,\nb,fox,own.png,fog\n")
    arguments = ["x", "--model=C", f"--prompt_file={file}", f"--out={tmp_path / 'o'}"]
    a, b = plan_jobs(parse([*arguments, "--video=clip.mp4", "--negative_prompt=dark"]))
    assert (a.image, a.video, a.negative_prompt) == (None, pathlib.Path("clip.mp4"), "dark")
    assert (b.image, b.video, b.negative_prompt) == (tmp_path / "own.png", None, "fog")
    assert dataclasses.replace(a.settings, seed=0) == dataclasses.replace(b.settings, seed=0)


def test_the_content_of_a_checkpoint(tmp_path):
    """An edited setting, one byte of small weights and weights trained further are noticed, a copy is the same."""
    folder = tmp_path / "model"
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "transformer" / "config.json").write_text('{"eps": 1e-6}')
    weights = np.random.default_rng(0).bytes(300_000)
    (folder / "transformer" / "x.safetensors").write_bytes(weights)
    first = content_digest(folder)
    shutil.copytree(folder, tmp_path / "copy")
    assert content_digest(tmp_path / "copy") == first
    (folder / "transformer" / "x.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert content_digest(folder) not in (first, None)
    (folder / "transformer" / "x.safetensors").write_bytes(weights)
    assert content_digest(folder) == first
    (folder / "transformer" / "config.json").write_text('{"eps": 1e-5}')
    assert content_digest(folder) != first
    (tmp_path / "snapshots").mkdir()
    assert content_digest(folder.rename(tmp_path / "snapshots" / "abc")) is None
