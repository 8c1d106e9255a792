"""One process makes a video, and its record survives full disks and kills."""

import json
import os
import subprocess
import sys

import pytest

from helios_jax.sample.claims import Busy, Claim
from helios_jax.sample.outputs import Outputs

RECORD = {"helios_jax": "0.2", "prompt": "fox"}


@pytest.fixture
def outputs(tmp_path) -> Outputs:
    return Outputs(video=tmp_path / "new" / "fox.mp4")


def test_a_finished_claim_becomes_the_record(outputs):
    with Claim(outputs, RECORD) as claim:
        assert json.loads(outputs.claim.read_text())["unfinished"]["pid"] == os.getpid()
        claim.finish({**RECORD, "frames": 33})
    assert json.loads(outputs.record.read_text()) == {**RECORD, "frames": 33}
    assert os.listdir(outputs.video.parent) == ["fox.helios.json"]


def test_an_unfinished_claim_leaves_nothing(outputs):
    with pytest.raises(OSError, match="disk"), Claim(outputs, RECORD):
        raise OSError("disk")
    assert os.listdir(outputs.video.parent) == []


def test_a_claim_is_refused_while_another_one_is_held(outputs):
    with Claim(outputs, RECORD), pytest.raises(Busy, match=rf"another process \(pid {os.getpid()} on "):
        Claim(outputs, RECORD)
    with Claim(outputs, RECORD):
        assert outputs.claim.exists()


def test_a_killed_process_blocks_nobody(outputs):
    code = (
        "import os, pathlib, sys; from helios_jax.sample.claims import Claim; "
        "from helios_jax.sample.outputs import Outputs; "
        f"claim = Claim(Outputs(video=pathlib.Path({str(outputs.video)!r})), {RECORD!r}); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert outputs.claim.exists()
    with Claim(outputs, RECORD) as claim:
        claim.finish(RECORD)
    assert outputs.record.exists()


def test_what_others_wrote_is_not_claimed(outputs):
    outputs.video.parent.mkdir()
    outputs.claim.write_text("[1]")
    with pytest.raises(FileExistsError, match=r"fox\.unfinished\.json was not written by helios-sample"):
        Claim(outputs, RECORD)
    assert outputs.claim.read_text() == "[1]"


def test_the_record_of_a_finished_video_needs_no_new_space(outputs):
    """The finished record is written over what the claim holds, and is not longer."""
    with Claim(outputs, RECORD) as claim:
        inode, size = outputs.claim.stat().st_ino, outputs.claim.stat().st_size
        claim.finish({**RECORD, "versions": "x" * 2000})
    assert outputs.record.stat().st_ino == inode
    assert outputs.record.stat().st_size < size
