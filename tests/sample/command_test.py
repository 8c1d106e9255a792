"""The command line of sampling, run as users run it."""

import json
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from helios_jax import sample
from helios_jax.checkpoints.random import write_random_checkpoint
from helios_jax.media.reading import load_video
from helios_jax.media.video_writer import VideoWriter

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
    record = json.loads((tmp_path / "fox.helios.json").read_text())
    assert (record["prompt"], record["seed"], record["steps"], record["frames"]) == ("fox", 3, [1, 1, 1], 65)
    settings = ["keep_first_frame", "max_text_tokens", "dtype", "vae_dtype", "revision", "num_frames", "image_sigmas"]
    assert [record[name] for name in settings] == [True, 32, "float32", "float32", None, 40, [0.111, 0.135]]
    assert record["versions"]["jax"] == jax.__version__
    assert record["device"] == "cpu"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fox.helios.json", "fox.mp4", "fox.sheet.png"]
    *_, before_last, last = capsys.readouterr().out.splitlines()
    assert before_last.startswith("fox.mp4: chunk 1, 65 frames (2.7 s of video)")
    assert last == (
        f"wrote {tmp_path / 'fox.mp4'}: 65 frames, 2.7 s of video "
        "(contact sheet fox.sheet.png, settings fox.helios.json)"
    )


@pytest.mark.slow
def test_parked_networks_make_the_same_video(model, tmp_path, capsys):
    line = (model, "--prompt=fox", f"--out={tmp_path / 'fox.mp4'}", "--num_frames=33", *SMALL)
    assert run(*line) == 0
    expected = decoded(tmp_path / "fox.mp4")
    capsys.readouterr()
    assert run(*line, "--park=text_encoder,vae", "--overwrite") == 0
    assert "kB parked, text_encoder" in capsys.readouterr().out
    np.testing.assert_array_equal(decoded(tmp_path / "fox.mp4"), expected)
    with pytest.raises(SystemExit):
        run(*line, "--park=transformer")
    assert "--park: 'transformer' cannot be parked" in capsys.readouterr().err


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
def test_files_of_others_are_not_touched(model, tmp_path, capsys, more):
    (tmp_path / "fox.mp4").write_bytes(b"mine")
    (tmp_path / "fox.png").write_bytes(b"mine")
    assert run(model, "--prompt=fox", f"--out={tmp_path / 'fox.mp4'}", *SMALL, *more) == 1
    assert str(tmp_path / "fox.mp4") in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"fox.mp4": b"mine", "fox.png": b"mine"}


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


@pytest.mark.slow
def test_prompt_file_makes_each_video_and_resumes(model, tmp_path, capsys):
    prompts, out = tmp_path / "prompts.csv", tmp_path / "out"
    prompts.write_text("id,prompt_index,prompt\na,0,sun\na,1,rain\nb,0,snow\nc,0,snow\n")
    arguments = (model, f"--prompt_file={prompts}", f"--out={out}", "--chunks_per_prompt=1", "--blend_chunks=0", *SMALL)
    arguments += ("--num_frames=33",)
    assert run(*arguments) == 0
    assert [len(decoded(out / f"{name}.mp4")) for name in "abc"] == [33] * 3
    assert (decoded(out / "b.mp4") != decoded(out / "c.mp4")).any()
    # The work on b was interrupted in an earlier life: no record. It is made again and the old frames are kept.
    (out / "b.helios.json").unlink()
    before = {path: path.read_bytes() for path in out.glob("[ac].*")}
    old = decoded(out / "b.mp4")
    assert run(*arguments) == 0
    assert "2 of 3 videos are finished already" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in out.glob("[ac].*")} == before
    np.testing.assert_array_equal(decoded(out / "b.interrupted1.mp4"), old)
    np.testing.assert_array_equal(decoded(out / "b.mp4"), old)
    # A prompt was edited: no video of the old prompt passes for one of the new.
    prompts.write_text(prompts.read_text().replace("rain", "hail"))
    assert run(*arguments) == 1
    message = capsys.readouterr().err
    assert "a.mp4 was made with other settings" in message
    assert "line 2" in message
    assert "hail" in message
    assert {path: path.read_bytes() for path in out.glob("[ac].*")} == before


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
    assert not (tmp_path / "long.helios.json").exists()


@pytest.mark.slow
def test_every_finished_chunk_plays_after_a_kill_at_any_time(model, tmp_path):
    """Kills at times that are no one's choice; the same command then goes through, and nothing is lost."""
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("fox\n")
    arguments = command(model, f"--prompt_file={prompts}", f"--out={out}", *SMALL)
    delays = np.random.default_rng(0).uniform(0, 2, 8)
    finished = []
    for delay in delays:
        with subprocess.Popen(
            [*arguments, "--num_frames=33000"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            chunks = 0
            for line in process.stdout:
                chunks += "chunk 0," in line
                if chunks:
                    break
            time.sleep(delay)
            process.kill()
            chunks += process.stdout.read().count(": chunk ")
        assert process.returncode == -signal.SIGKILL
        finished.append(chunks)
        assert len(decoded(out / "1.mp4")) >= 33 * chunks
    assert run(*arguments[4:], "--num_frames=33") == 0
    assert len(decoded(out / "1.mp4")) == 33
    for number, chunks in enumerate(finished, 1):
        assert len(decoded(out / f"1.interrupted{number}.mp4")) >= 33 * chunks
    assert not (out / "1.unfinished.json").exists()


@pytest.mark.slow
def test_two_processes_share_the_work_of_a_folder(model, tmp_path):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("fox\nboat\nsnow\nrain\n")
    arguments = command(model, f"--prompt_file={prompts}", f"--out={out}", "--num_frames=33", *SMALL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(arguments, **pipes) as first, subprocess.Popen(arguments, **pipes) as second:
        texts = [process.communicate()[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), texts
    assert sum(text.count("wrote ") for text in texts) == 4
    assert [len(decoded(out / f"{number}.mp4")) for number in range(1, 5)] == [33] * 4
    assert len(list(out.iterdir())) == 12


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_chunk_ends_the_command(model, tmp_path, number):
    arguments = command(model, "--prompt=fox", f"--out={tmp_path / 'out.mp4'}", *SMALL)
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()  # loading
        process.send_signal(number)
        _, message = process.communicate()
    assert process.returncode == 130
    assert message == "helios-sample: interrupted; what was written so far is kept\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_end_of_the_input_finishes_a_stream(model, tmp_path):
    out = tmp_path / "live.mp4"
    arguments = command(model, "--prompt=sun", f"--out={out}", "--stream", "--blend_chunks=2", *SMALL)
    done = subprocess.run(arguments, input="rain\n", capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "prompt from chunk 1 on: rain" in done.stdout
    assert len(decoded(out)) == 99  # one of the sun and the two of the blend
    assert json.loads((tmp_path / "live.helios.json").read_text())["frames"] == 99


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
    assert (tmp_path / "live.sheet.png").exists()
    assert not (tmp_path / "live.helios.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --prompt or --prompt_file"),
        (("--warmup", "--prompt=a", "--out=folder"), "must end in .mp4"),
        (("--prompt=a", "--out=folder"), "must end in .mp4"),
        (("--prompt_file=a.csv", "--prompt=b"), "drop --prompt and --stream"),
        (("--prompt_file=a.csv", "--out=a.mp4"), "must be a folder"),
        (("--prompt=a", "--image=a.png", "--video=a.mp4"), "both given"),
        (("--prompt=a", "--lora=nothing.safetensors"), "nothing.safetensors does not exist"),
        (("--prompt=a", "--num_frames=99999", "--image=nothing.png"), "nothing.png does not exist"),
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
