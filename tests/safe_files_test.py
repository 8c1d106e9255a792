"""Small files that are replaced whole, and claims."""

import errno
import os
import pathlib
import subprocess
import sys
import time

import pytest

from helios_jax.safe_files import claimed, replace_text


def test_content_is_replaced_and_nothing_else_is_left(tmp_path):
    file = tmp_path / "a.json"
    for text in ("one\n", "café\n"):
        replace_text(file, text)
        assert file.read_text(encoding="utf-8") == text
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_disk_keeps_the_old_content(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    replace_text(file, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*a\.json: No space left on device"):
        replace_text(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_claim_is_held_once_and_released(tmp_path):
    file = tmp_path / ".lock"
    with claimed(file, "the run is being trained"):
        with (
            pytest.raises(BlockingIOError, match="the run is being trained by another process"),
            claimed(file, "the run is being trained"),
        ):
            pass
        assert file.exists()
    assert not file.exists()
    with claimed(file, "again"):
        pass


@pytest.mark.slow
def test_a_claim_ends_with_its_process_however_that_ends(tmp_path):
    file = tmp_path / ".lock"
    code = (
        "import sys, pathlib, time; from helios_jax.safe_files import claimed\n"
        "with claimed(pathlib.Path(sys.argv[1]), 'x'): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, cwd=pathlib.Path(__file__).parents[1]
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(BlockingIOError), claimed(file, "x"):
        pass
    process.kill()
    process.communicate()
    time.sleep(0.1)
    with claimed(file, "x"):
        pass
