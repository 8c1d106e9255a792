"""Small files that are replaced whole, and claims."""

import errno
import fcntl
import os
import pathlib
import subprocess
import sys
import time

import pytest

from helios_jax.safe_files import claimed, is_at, read_object, replace_text, try_lock


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


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_damaged_objects_are_named_with_what_to_do(tmp_path, content):
    file = tmp_path / "a.json"
    with pytest.raises(FileNotFoundError, match=r"a\.json is missing; write it again"):
        read_object(file, "write it again")
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"^.*a\.json is damaged \(.*\); write it again$"):
        read_object(file, "write it again")


def test_objects_are_read(tmp_path):
    (tmp_path / "a.json").write_text('{"caf\u00e9": [1]}', encoding="utf-8")
    assert read_object(tmp_path / "a.json", "") == {"caf\u00e9": [1]}


def test_one_descriptor_holds_the_lock(tmp_path):
    file = tmp_path / "a"
    file.touch()
    with file.open() as one, file.open() as other:
        assert [try_lock(one.fileno()), try_lock(other.fileno())] == [True, False]


def test_file_systems_without_locks_refuse_nobody(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with claimed(tmp_path / ".lock", "x"), claimed(tmp_path / ".lock", "x"):
        pass


def test_a_file_that_was_replaced_is_not_there(tmp_path):
    file = tmp_path / "a"
    file.touch()
    with file.open() as opened:
        assert is_at(opened.fileno(), file)
        file.rename(tmp_path / "b")
        assert not is_at(opened.fileno(), file)
        file.touch()
        assert not is_at(opened.fileno(), file)


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
