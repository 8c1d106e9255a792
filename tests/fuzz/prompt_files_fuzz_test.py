"""Prompt files with random damage: the command names the file, or reads it as a strict reader of csv does.

Nothing is sampled: the files are read as far as the plan of the videos.
"""

import csv
import io
import pathlib
import random
import unicodedata

import pytest

from helios_jax.sample.flags import parse
from helios_jax.sample.jobs import Job, plan_jobs

GOOD = (
    "id,prompt_index,prompt,negative_prompt,seed\n"
    'fox,0,"A red fox, in snow",fog,1\nfox,1,The fox sleeps.,,\nboat,0,"A ""small"" boat",,7\nsea,0,Waves,,\n'
)
PIECES = ['"', '""', ",", "\n", "\r\n", "\0", "/", "..", "\\", ";", "\t", " ", "\u200b", "é", "\ufeff", "9" * 30, "-1"]
PIECES += ["x" * 200_000, "id", "a" * 300, "'", "\ud7ff", "😀", "\u2028", "\x1b[2J"]


def damaged(seed: int) -> bytes:
    """The good file with one to three random changes, some of them to its bytes."""
    draws = random.Random(seed)
    text = GOOD
    for _ in range(draws.randint(1, 3)):
        place = draws.randrange(len(text))
        kind = draws.choice(["insert", "insert", "delete", "cut", "double"])
        if kind == "insert":
            text = text[:place] + draws.choice(PIECES) + text[place:]
        elif kind == "delete":
            text = text[:place] + text[place + draws.randint(1, 20) :]
        elif kind == "cut":
            text = text[: max(place, 10)]
        else:
            line = draws.choice(text.splitlines(keepends=True))
            text += line
    data = bytearray(text.encode())
    if seed % 4 == 0:
        data[draws.randrange(len(data))] = draws.randrange(256)
    return bytes(data)


def planned(file: pathlib.Path, out: pathlib.Path) -> list[Job]:
    return plan_jobs(parse(["helios-sample", "--model=C", f"--prompt_file={file}", f"--out={out}"]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(are ignored|continues to line)")
@pytest.mark.parametrize("seed", range(200))
def test_damaged_files_are_refused_or_read_right(tmp_path, seed):
    file, out = tmp_path / "prompts.csv", tmp_path / "out"
    file.write_bytes(damaged(seed))
    message, jobs = "", []
    try:
        jobs = planned(file, out)
    except ValueError as error:
        message = str(error)
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.csv"]
    if message:
        assert str(file) in message or "bytes too long" in message
        assert len(message) < 1500
        return
    # What was read is what the standard library reads, row by row, and every video has a file of its own.
    text = file.read_bytes().decode("utf-8-sig")
    csv.field_size_limit(10**6)
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if any(map(str.strip, row))]
    names = [name.strip() for name in rows[0]]
    column = names.index("prompt")
    wanted = sorted(row[column].strip() for row in rows[1:])
    prompts = [[job.prompt] if isinstance(job.prompt, str) else list(job.prompt.prompts) for job in jobs]
    assert sorted(prompt for each in prompts for prompt in each) == wanted
    assert all(job.outputs.video.parent == out for job in jobs)
    assert len({unicodedata.normalize("NFC", job.outputs.video.name).casefold() for job in jobs}) == len(jobs)


def test_the_undamaged_file(tmp_path):
    (tmp_path / "prompts.csv").write_text(GOOD)
    jobs = planned(tmp_path / "prompts.csv", tmp_path / "out")
    assert [(job.outputs.video.name, job.settings.seed) for job in jobs if job.negative_prompt is None] == [
        ("boat.mp4", 7),
        ("sea.mp4", 2345255223),  # crc32 of the id
    ]
