"""The command line of sampling, run as users run it."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from helios_jax import sample
from helios_jax.checkpoints.random import write_random_checkpoint
from helios_jax.media.reading import load_video
from helios_jax.media.video_writer import VideoWriter
from helios_jax.sampling.prompts import PromptSchedule

SMALL = ["--height=64", "--width=64", "--steps=1,1,1", "--max_text_tokens=32", "--no-amplify_first_chunk"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    write_random_checkpoint(folder)
    return f"--model={folder}"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-u", "-m", "helios_jax.sample", *arguments]


def run(*arguments: str) -> int:
    return sample.main(sample.parse(["helios-sample", *arguments]))


def decoded(path) -> np.ndarray:
    return load_video(path, 64, 64)


def test_help_imports_nothing_heavy():
    line = [sys.executable, "-X", "importtime", *command("--help")[1:]]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert "--prompt_file" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "absl.app" in imported
    assert not imported & {"jax", "flax", "numpy", "av", "PIL", "orbax", "safetensors", "huggingface_hub", "tokenizers"}


def test_text_to_video(model, tmp_path, capsys):
    assert run(model, "--prompt=fox", f"--out={tmp_path / 'fox.mp4'}", "--num_frames=40", "--seed=3", *SMALL) == 0
    assert decoded(tmp_path / "fox.mp4").shape == (65, 64, 64, 3)
    record = json.loads((tmp_path / "fox.json").read_text())
    assert (record["prompt"], record["seed"], record["steps"], record["frames"]) == ("fox", 3, [1, 1, 1], 65)
    assert (tmp_path / "fox.png").stat().st_size > 0
    assert "chunk 1, 65 frames" in capsys.readouterr().out


def test_existing_file_is_not_touched(model, tmp_path, capsys):
    (tmp_path / "fox.mp4").write_bytes(b"mine")
    assert run(model, "--prompt=fox", f"--out={tmp_path / 'fox.mp4'}", *SMALL) == 1
    assert "exists; choose another --out or pass --overwrite" in capsys.readouterr().err
    assert (tmp_path / "fox.mp4").read_bytes() == b"mine"


@pytest.mark.slow
def test_image_and_clip_as_start(model, tmp_path):
    from PIL import Image

    frames = np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3), np.uint8)
    with VideoWriter(tmp_path / "clip.mp4") as video:
        video.write(frames)
    Image.fromarray(frames[0]).save(tmp_path / "still.png")
    for start in (f"--video={tmp_path / 'clip.mp4'}", f"--image={tmp_path / 'still.png'}"):
        out = tmp_path / f"{start[2:5]}.mp4"
        assert run(model, start, "--prompt=go on", f"--out={out}", "--num_frames=33", *SMALL) == 0
        assert len(decoded(out)) == 33


def test_prompt_file_makes_each_video_and_resumes(model, tmp_path, capsys):
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("id,prompt_index,prompt\na,0,sun\na,1,rain\nb,0,snow\n")
    arguments = (model, f"--prompt_file={prompts}", f"--out={tmp_path / 'out'}", "--chunks_per_prompt=1")
    assert run(*arguments, "--blend_chunks=0", *SMALL, "--num_frames=66") == 0
    assert len(decoded(tmp_path / "out" / "a.mp4")) == len(decoded(tmp_path / "out" / "b.mp4")) == 65
    # b was interrupted in an earlier life: no record. It is made again and the old frames are kept.
    (tmp_path / "out" / "b.json").unlink()
    before = (tmp_path / "out" / "a.mp4").stat().st_mtime_ns
    assert run(*arguments, "--blend_chunks=0", *SMALL, "--num_frames=33") == 0
    assert "1 of 2 videos are finished already" in capsys.readouterr().out
    assert (tmp_path / "out" / "a.mp4").stat().st_mtime_ns == before
    assert len(decoded(tmp_path / "out" / "b.interrupted1.mp4")) == 65
    assert len(decoded(tmp_path / "out" / "b.mp4")) == 33


def test_schedule_decides_the_length(model, tmp_path):
    job = sample.Job(
        prompt=PromptSchedule(prompts=("sun", "rain"), chunks_per_prompt=1, blend_chunks=0), path=tmp_path / "s.mp4"
    )
    args = sample.parse(["helios-sample", model, f"--out={tmp_path}", "--prompt_file=x.csv", *SMALL])
    from helios_jax import HeliosPipeline

    pipe = HeliosPipeline.from_pretrained(args.model, dtype=args.dtype, vae_dtype=args.vae_dtype)
    sample.sample(pipe, job, args)
    assert json.loads(job.record.read_text())["frames"] == 65


def test_warmup_alone_compiles_and_stops(model, capsys):
    assert run(model, "--warmup", *SMALL) == 0
    assert "compiled for 64x64 in" in capsys.readouterr().out


@pytest.mark.slow
def test_killed_run_leaves_a_playable_file(model, tmp_path):
    out = tmp_path / "long.mp4"
    arguments = command(model, "--prompt=fox", f"--out={out}", "--num_frames=33000", *SMALL)
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        for line in process.stdout:
            if "chunk 2," in line:
                process.kill()
                break
        process.stdout.read()
    assert process.returncode == -signal.SIGKILL
    assert len(decoded(out)) >= 99
    assert not out.with_suffix(".json").exists()


@pytest.mark.slow
def test_stream_takes_prompts_from_standard_input_until_it_is_interrupted(model, tmp_path):
    out = tmp_path / "live.mp4"
    arguments = command(model, "--prompt=sun", f"--out={out}", "--stream", "--blend_chunks=0", *SMALL)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(arguments, **pipes) as process:
        process.stdin.write("rain\n")
        process.stdin.flush()
        after = None
        for line in process.stdout:
            if line.startswith("prompt from chunk") and line.rstrip().endswith(": rain"):
                after = 0
            elif after is not None:
                after += 1
                if after == 2:  # it continues after the change
                    process.send_signal(signal.SIGTERM)  # handled as Ctrl-C is
                    break
        process.stdout.read()
        message = process.stderr.read()
    assert process.returncode == 130
    assert "interrupted; what was written so far is kept" in message
    assert len(decoded(out)) >= 99
    assert out.with_suffix(".png").exists()
    assert not out.with_suffix(".json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --prompt or --prompt_file"),
        (("--warmup", "--prompt=a", "--out=folder"), "must end in .mp4"),
        (("--prompt=a", "--out=folder"), "must end in .mp4"),
        (("--prompt_file=a.csv", "--prompt=b"), "drop --prompt and --stream"),
        (("--prompt_file=a.csv", "--out=a.mp4"), "must be a folder"),
        (("--prompt=a", "--model=nowhere"), "neither a folder nor a hub id"),
        (("--prompt=a", "--height=100"), "nearest valid size is height=128, width=64"),
        (("--prompt=a", "--steps=2,2"), "3 numbers, one per pyramid level"),
        (("--prompt=a", "--video=nothing.mp4"), "nothing.mp4 does not exist"),
    ],
)
def test_user_errors_are_one_line(model, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run(model, "--out=video.mp4", *SMALL, *arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("helios-sample: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "video.mp4").exists()
