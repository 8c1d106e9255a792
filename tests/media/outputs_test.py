"""Files of outputs: claimed before the work, never taken from anyone else, and recognised as ours."""

import os
import pathlib
import resource
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from helios_jax.media.contact_sheet import ContactSheet
from helios_jax.media.outputs import Claim, replacement
from helios_jax.media.provenance import MP4_START, empty_png, written_by_us
from helios_jax.media.rates import frame_rate
from helios_jax.media.video_writer import VideoWriter

FRAMES = np.random.default_rng(0).integers(0, 256, (4, 32, 48, 3), dtype=np.uint8)


def claim(path: pathlib.Path, **options) -> Claim:
    return Claim(path, ".mp4", start=MP4_START, **{"overwrite": False, **options})


@pytest.mark.parametrize("overwrite", [False, True])
def test_conflicts_are_refused_at_once(tmp_path, overwrite):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").write_text("a file")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("precious")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "text.mp4")
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "nothing.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    before = sorted(tmp_path.iterdir())
    for name in ("folder.mp4", "empty.mp4", "text.mp4", "link.mp4", "dangling.mp4", "pipe.mp4"):
        with pytest.raises(FileExistsError, match=name):
            claim(tmp_path / name, overwrite=overwrite)
    with pytest.raises(NotADirectoryError, match=r"a part of .*file is a file, not a folder"):
        claim(tmp_path / "file" / "x.mp4", overwrite=overwrite)
    for name, message in (
        ("y" * 252 + ".mp4", "longer than 255 bytes"),
        ("x.webm", r"must end in \.mp4"),
        ("", "end in"),
    ):
        with pytest.raises(ValueError, match=message):
            claim(tmp_path / name, overwrite=overwrite)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "text.mp4").read_text() == "precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folders_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=r"cannot write .*x\.mp4: Permission denied"):
        claim(tmp_path / "x.mp4")


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    claimed = claim(pathlib.Path("~/new/x.mp4"))
    assert claimed.path == tmp_path / "new" / "x.mp4"
    claimed.release(remove=True)
    assert not claimed.path.exists()


def test_a_claimed_file_is_refused_to_others(tmp_path):
    first = claim(tmp_path / "x.mp4")
    with pytest.raises(FileExistsError, match="exists"):
        claim(tmp_path / "x.mp4")
    with pytest.raises(FileExistsError, match=r"x\.mp4 is being written by another process"):
        claim(tmp_path / "x.mp4", overwrite=True)
    first.release()
    first.release()
    claim(tmp_path / "x.mp4", overwrite=True).release(remove=True)


def test_other_names_of_a_replaced_file_keep_it(tmp_path):
    """A hard link is a cheap copy for its owner, and a symbolic link does not lend its target."""
    for name in ("hard.mp4", "soft.mp4"):
        with VideoWriter(tmp_path / f"a-{name}") as writer:
            writer.write(FRAMES)
    content = (tmp_path / "a-hard.mp4").read_bytes()
    (tmp_path / "hard.mp4").hardlink_to(tmp_path / "a-hard.mp4")
    (tmp_path / "soft.mp4").symlink_to(tmp_path / "a-soft.mp4")
    for name in ("hard.mp4", "soft.mp4"):
        with VideoWriter(tmp_path / name, overwrite=True) as writer:
            writer.write(FRAMES[:2])
        assert (tmp_path / f"a-{name}").read_bytes() == content
        assert not (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_bytes() != content


def test_a_file_that_took_the_place_of_ours_is_kept(tmp_path):
    """Whoever moves the growing video and saves another file under its name loses neither."""
    writers = [VideoWriter(tmp_path / "a.mp4"), VideoWriter(tmp_path / "b.mp4"), ContactSheet(tmp_path / "c.png")]
    for writer in writers[1:]:
        writer.write(FRAMES)
    for writer in writers:
        writer.path.rename(writer.path.with_suffix(".moved"))
        writer.path.write_text("precious")
    with pytest.raises(FileNotFoundError, match=r"b\.mp4 was moved, removed or replaced while it was written"):
        writers[1].write(FRAMES)
    writers[0].close()
    for writer in writers[1:]:
        with pytest.warns(UserWarning, match="was moved, removed or replaced"):
            writer.close()
    assert all(writer.path.read_text() == "precious" for writer in writers)
    assert written_by_us(tmp_path / "b.moved")


def test_a_forgotten_claim_is_given_up(tmp_path):
    first = claim(tmp_path / "x.mp4")
    del first
    claim(tmp_path / "x.mp4", overwrite=True).release(remove=True)


def test_a_full_disk_is_noticed_at_once(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*x\.mp4: No space left on device"):
            claim(tmp_path / "x.mp4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_killed_process_gives_its_claim_up(tmp_path):
    """Its file is recognised although nothing was written to it, and can be replaced."""
    code = f"""
import time
from helios_jax.media.video_writer import VideoWriter
writer = VideoWriter({str(tmp_path / "x.mp4")!r})
print("claimed", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "claimed\n"
    with pytest.raises(FileExistsError, match="is being written by another process"):
        VideoWriter(tmp_path / "x.mp4", overwrite=True)
    process.kill()
    process.wait()
    process.stdout.close()
    assert written_by_us(tmp_path / "x.mp4")
    with VideoWriter(tmp_path / "x.mp4", overwrite=True) as writer:
        writer.write(FRAMES)
    assert written_by_us(tmp_path / "x.mp4")


def test_videos_are_recognised_at_every_point(tmp_path):
    path = tmp_path / "x.mp4"
    writer = VideoWriter(path)
    assert written_by_us(path)
    writer.write(FRAMES)
    assert written_by_us(path)
    (tmp_path / "cut.mp4").write_bytes(path.read_bytes()[:-100])
    assert written_by_us(tmp_path / "cut.mp4")
    writer.close()
    assert written_by_us(path)


def test_edited_videos_are_not_ours(tmp_path):
    """A tool that copies packets and metadata into a new file does not copy the mark."""
    for seekable in (False, True):
        writer = VideoWriter(tmp_path / "x.mp4", overwrite=True)
        writer.write(FRAMES)
        writer.close(seekable=seekable)
        with av.open(str(tmp_path / "x.mp4")) as source, av.open(str(tmp_path / "y.mp4"), "w") as target:
            target.metadata.update(source.metadata)
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
        assert not written_by_us(tmp_path / "y.mp4")


def test_sheets_are_recognised(tmp_path):
    with ContactSheet(tmp_path / "x.png") as sheet:
        assert written_by_us(sheet.path)
        with Image.open(sheet.path) as image:
            assert image.size == (1, 1)
        sheet.write(FRAMES)
    assert written_by_us(sheet.path)
    with Image.open(sheet.path) as image:
        assert image.info["Software"].startswith("helios_jax")
        image.save(tmp_path / "edited.png")
    assert not written_by_us(tmp_path / "edited.png")


@pytest.mark.parametrize(
    ("name", "content", "ours"),
    [
        ("a.json", b'{"helios_jax": "0.1.0", "seed": 1}', True),
        ("a.json", b'{"seed": 1}', False),
        ("a.json", b'["helios_jax"]', False),
        ("a.json", b"{", False),
        ("a.json", b"\xff\xfe", False),
        ("a.json", b"[" * 100_000, False),
        ("a.mp4", b"", False),
        ("a.mp4", MP4_START[:-40], False),
        ("a.png", empty_png().replace(b"hlXS", b"tEXt"), False),
        ("a.png", empty_png()[:20], False),
    ],
)
def test_marks(tmp_path, name, content, ours):
    (tmp_path / name).write_bytes(content)
    assert written_by_us(tmp_path / name) == ours


def test_what_is_not_there_is_not_ours(tmp_path):
    assert not written_by_us(tmp_path / "missing.mp4")
    assert not written_by_us(tmp_path)


def test_replacements_keep_permissions_and_leave_nothing_behind(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    path.chmod(0o640)
    with pytest.raises(FileNotFoundError), replacement(path) as copy:
        copy.rename(tmp_path / "moved").unlink()
    assert path.read_text() == "old"
    with replacement(path) as copy:
        copy.write_text("new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("fps", "rate"),
    [
        (24, 24),
        (np.int64(30), 30),
        (24.0, 24),
        (Fraction(30000, 1001), Fraction(30000, 1001)),
        (29.97, Fraction(30000, 1001)),
        (30000 / 1001, Fraction(30000, 1001)),
        (23.976, Fraction(24000, 1001)),
        (23.98, Fraction(24000, 1001)),
        (np.float32(59.94), Fraction(60000, 1001)),
        (119.88, Fraction(120000, 1001)),
        (12.5, Fraction(25, 2)),
        (29.5, Fraction(59, 2)),
        (0.1, Fraction(1, 10)),
    ],
)
def test_rates(fps, rate):
    assert frame_rate(fps) == rate


@pytest.mark.parametrize("fps", ["24", None, True, float("nan"), float("inf"), 0, -1, 1001, 1e-9, 10**400, 2 + 0j])
def test_no_rates(fps):
    with pytest.raises(ValueError, match=r"rate=.* must be"):
        frame_rate(fps, "rate")
