"""``--save_state`` and ``--resume``: a video in two files is the video in one; wrong combinations are refused."""

import signal
import subprocess

import numpy as np
import pytest
from command_test import SMALL, command, decoded, model, run

from helios_jax import sample
from helios_jax.sampling.stream_state import StreamState

__all__ = ["model"]  # a fixture


def refusal(capsys, *arguments: str) -> str:
    """The line on standard error of a command that cannot work."""
    assert run(*arguments) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_flags_that_were_given():
    line = ["helios-sample", "--model=m", "--height=384", "--num_frames=9", "--no-skip_first_chunk"]
    assert sample.parse(line).given == {"height", "num_frames", "skip_first_chunk"}


@pytest.mark.slow
def test_two_files_are_the_video_of_one(model, tmp_path, capsys):
    whole, first, second = (str(tmp_path / name) for name in ("whole.mp4", "first.mp4", "second.mp4"))
    state = f"{tmp_path / 'states' / 'fox.state'}"
    assert run(model, "--prompt=fox", f"--out={whole}", "--num_frames=132", "--seed=3", *SMALL) == 0
    line = (model, "--prompt=fox", f"--out={first}", "--num_frames=60", "--seed=3", f"--save_state={state}", *SMALL)
    assert run(*line) == 0
    # All frames of the chunks, so that nothing is missing in between.
    assert len(decoded(first)) == 66
    assert StreamState.load(state).index == 2
    resume = (model, f"--resume={state}")
    assert run(*resume, f"--out={second}", "--num_frames=132") == 0
    np.testing.assert_array_equal(np.concatenate([decoded(first), decoded(second)]), decoded(whole))

    capsys.readouterr()
    out = f"--out={tmp_path / 'third.mp4'}"
    assert "num_frames=60, but 66 frames of the video are finished" in refusal(capsys, *resume, out)
    more = (*resume, out, "--num_frames=198")
    assert "height=128: the video to be resumed has height=64, which stays" in refusal(capsys, *more, "--height=128")
    assert "drop --image, --warmup" in refusal(capsys, *more, "--image=a.png", "--warmup")
    assert "made with dtype='float32', and the model" in refusal(capsys, *more, "--dtype=bfloat16")
    assert "exists; choose another --save_state or pass --over" in refusal(capsys, *line[:2], out, *line[3:])
    assert "is the same file as" in refusal(capsys, *more, f"--save_state={tmp_path / 'third.sheet.png'}")
    assert "is not a stream state" in refusal(capsys, model, f"--resume={whole}", out)
    assert "is not a stream state, so it is not replaced" in refusal(
        capsys, *more, f"--save_state={whole}", "--overwrite"
    )
    assert "drop --prompt_file" in refusal(capsys, *more, "--prompt_file=a.txt")
    assert not (tmp_path / "third.mp4").exists()
    # A new prompt, and the state of the longer video in place of the earlier one.
    assert run(*more, "--prompt=dog", "--blend_chunks=0", f"--save_state={state}") == 0
    assert StreamState.load(state).index == 6
    assert len(decoded(tmp_path / "third.mp4")) == 132
    assert (decoded(tmp_path / "third.mp4")[:63] != decoded(second)).any()


@pytest.mark.slow
def test_interrupted_stream_goes_on(model, tmp_path):
    state, arguments = tmp_path / "fox.state", (model, "--prompt=fox", "--seed=3", *SMALL)
    line = command(*arguments, f"--out={tmp_path / 'a.mp4'}", f"--save_state={state}", "--num_frames=33000")
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        for text in process.stdout:
            if "chunk 2," in text:
                process.send_signal(signal.SIGTERM)
                break
        process.stdout.read()
    assert process.returncode == 130
    made, index = decoded(tmp_path / "a.mp4"), StreamState.load(state).index
    # The state may be a chunk behind the file, never ahead of it.
    assert len(made) // 33 - index in (0, 1)
    frames = 33 * (index + 1)
    assert (
        run(model, f"--resume={state}", f"--out={tmp_path / 'b.mp4'}", f"--num_frames={frames}", "--exact_frames") == 0
    )
    assert run(*arguments, f"--out={tmp_path / 'whole.mp4'}", f"--num_frames={frames}", "--exact_frames") == 0
    joined = np.concatenate([made[: 33 * index], decoded(tmp_path / "b.mp4")])
    np.testing.assert_array_equal(joined, decoded(tmp_path / "whole.mp4"))
