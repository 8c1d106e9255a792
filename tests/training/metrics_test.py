"""Files with the metrics of a run."""

import contextlib
import io
import math
import resource
import signal
import struct

import numpy as np
import pytest
from PIL import Image, ImageSequence
from tensorboardX.proto import event_pb2

from helios_jax.training.metrics import JsonLines, Writers, read_metrics
from helios_jax.training.tensorboard import TensorBoard
from helios_jax.training.validation import write_clip


def test_values_come_back_by_step(tmp_path):
    for steps in ((1, 2), (2, 3)):  # a run, and one that resumes it after step 1
        writer = JsonLines(tmp_path)
        for step in steps:
            writer.write(step, {"loss": step + steps[0] / 10})
        writer.close()
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert {step: record["loss"] for step, record in records.items()} == {1: 1.1, 2: 2.2, 3: 3.2}
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    writer = JsonLines(tmp_path)
    writer.write(1, {"loss": 1.0})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "los')
    writer = JsonLines(tmp_path)
    writer.write(2, {"loss": 2.0})
    writer.close()
    assert {step: record["loss"] for step, record in read_metrics(tmp_path / "metrics.jsonl").items()} == {1: 1, 2: 2}


def test_damaged_lines_are_left_out(tmp_path):
    lines = [b'{"step": 1, "loss": 1.0}', b"\xff\x00}", b"[3]", b'{"loss": 2.0}', b"{}}", b'{"step": 2, "loss": 2.0}']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    assert read_metrics(tmp_path / "metrics.jsonl") == {1: {"loss": 1.0}, 2: {"loss": 2.0}}


def test_a_step_can_have_lines_of_training_and_of_validation(tmp_path):
    writer = JsonLines(tmp_path)
    writer.write(1, {"loss": 1.0})
    writer.write(1, {"validation/brightness/chunk0": 0.5})
    writer.close()
    assert (
        read_metrics(tmp_path / "metrics.jsonl")[1].items() >= {"loss": 1, "validation/brightness/chunk0": 0.5}.items()
    )


@pytest.mark.parametrize("kind", [JsonLines, TensorBoard])
def test_a_full_disk_is_one_error_that_names_the_file(tmp_path, kind):
    writer = kind(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal_before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match=f"^cannot write {tmp_path}/(metrics.jsonl|tensorboard): "):  # noqa: PT012
            for step in range(1000):  # none of them waits for ever
                writer.write(step, {"loss": 1.0})
        with contextlib.suppress(OSError):
            writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, signal_before)
    if kind is JsonLines:
        again = JsonLines(tmp_path)
        again.write(1000, {"loss": 2.0})
        again.close()
        found = read_metrics(tmp_path / "metrics.jsonl")
        assert found.pop(1000)["loss"] == 2.0
        assert 10 < len(found) < 200
        assert list(found) == list(range(len(found)))


def summaries(folder):
    """The summaries in an event file, read without TensorBoard: records of length, checksum, bytes, checksum."""
    (events,) = (folder / "tensorboard").iterdir()
    content, found = events.read_bytes(), {}
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        event = event_pb2.Event.FromString(content[12 : 12 + length])
        found |= {value.tag: (event.step, value) for value in event.summary.value}
        content = content[16 + length :]
    return found


def test_tensorboard_shows_validation(tmp_path):
    frames = np.zeros((24, 360, 640, 3), np.uint8)
    frames[12:] = 255
    files = write_clip(tmp_path / "0.mp4", frames, 24, 12)
    writer = Writers([TensorBoard(tmp_path), JsonLines(tmp_path)])
    writer.show(7, [*files, tmp_path / "notes.txt"])
    writer.write(8, {"loss": math.nan, "rate": 2.0})
    writer.close()
    found = summaries(tmp_path)
    assert found.keys() == {"validation/0/sheet", "validation/0/video", "rate"}
    step, sheet = found["validation/0/sheet"]
    assert (step, sheet.image.encoded_image_string) == (7, (tmp_path / "0.png").read_bytes())
    step, video = found["validation/0/video"]
    assert (step, video.image.height, video.image.width) == (7, 180, 320)
    with Image.open(io.BytesIO(video.image.encoded_image_string)) as gif:
        assert gif.format == "GIF"
        shown = [
            (np.asarray(frame.convert("L")).mean(), frame.info["duration"]) for frame in ImageSequence.Iterator(gif)
        ]
    # Equal frames may be merged: half a second of black and half a second of white (a GIF counts in 10 ms).
    dark, light = (sum(duration for level, duration in shown if (level > 128) == bright) for bright in (False, True))
    assert (dark, light) == (pytest.approx(500, abs=30), pytest.approx(500, abs=30))


def test_tensorboard_files_hold_the_scalars(tmp_path):
    writer = Writers([TensorBoard(tmp_path), JsonLines(tmp_path)])
    writer.write(3, {"loss": 0.25})
    writer.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes()
    assert read_metrics(tmp_path / "metrics.jsonl")[3]["loss"] == 0.25
