"""Files with the metrics of a run."""

from helios_jax.training.metrics import JsonLines, Writers, read_metrics
from helios_jax.training.tensorboard import TensorBoard


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


def test_tensorboard_files_hold_the_scalars(tmp_path):
    writer = Writers([TensorBoard(tmp_path), JsonLines(tmp_path)])
    writer.write(3, {"loss": 0.25})
    writer.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes()
    assert read_metrics(tmp_path / "metrics.jsonl")[3]["loss"] == 0.25
