"""The files of helios_latents: exact round trips, TFDS's own reading, and errors."""

import json
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import tensorflow_datasets as tfds

from helios_jax.data.helios_latents.reader import open_latents
from helios_jax.data.helios_latents.record import LatentRecord, RecordError, parse_size, size_name
from helios_jax.data.helios_latents.writer import Failure, LatentWriter
from helios_jax.training.datasets import Latents
from helios_jax.training.loaders import latent_loader
from helios_jax.training.text_formats import PaddedEmbeds

SETTINGS = {"model": "somewhere", "seed": 0}


def record(number: int, size=(2, 3), chunks: int = 2) -> LatentRecord:
    rng = np.random.default_rng(number)
    latents = rng.standard_normal((chunks, 9, *size, 4)).astype(ml_dtypes.bfloat16)
    return LatentRecord(
        uid=f"clip{number}",
        caption=f"Café number {number}.",
        fps=23.976,
        height=8 * size[0],
        width=8 * size[1],
        latents=latents,
        anchor=latents[0, 0],
        embeds=rng.standard_normal((number + 1, 5)).astype(ml_dtypes.bfloat16),
    )


def write(folder, contents: dict) -> LatentWriter:
    """Writes files given as {size: [[records or failures of file 0], ...]}."""
    writer = LatentWriter(folder, {size: len(files) for size, files in contents.items()}, SETTINGS)
    for size, files in contents.items():
        for index, outcomes in enumerate(files):
            writer.write((size, index), outcomes)
    assert writer.finish()
    return writer


def assert_equal_records(a: LatentRecord, b: LatentRecord) -> None:
    for name, value in vars(a).items():
        other = getattr(b, name)
        if isinstance(value, np.ndarray):
            assert (value.dtype, value.shape) == (other.dtype, other.shape)
            assert value.tobytes() == other.tobytes()
        else:
            assert value == pytest.approx(other) if name == "fps" else value == other


def test_records_come_back_bit_by_bit(tmp_path):
    files = [[record(0), record(1)], [record(2, chunks=5)]]
    write(tmp_path, {(2, 3): files, (4, 2): [[record(3, size=(4, 2))]]})
    opened = open_latents(tmp_path)
    assert {size: len(records) for size, records in opened.items()} == {(2, 3): 3, (4, 2): 1}
    for got, want in zip(opened[2, 3], [*files[0], *files[1]], strict=True):
        assert_equal_records(got, want)
    assert_equal_records(opened[4, 2][0], record(3, size=(4, 2)))
    with pytest.raises(IndexError):
        opened[2, 3][3]


def test_records_without_text(tmp_path):
    clip = LatentRecord(**{**vars(record(0)), "embeds": np.zeros((0, 5))})
    write(tmp_path, {(2, 3): [[clip]]})
    assert open_latents(tmp_path)[2, 3][0].embeds.shape == (0, 5)


def test_float32_is_rounded_to_nearest(tmp_path):
    values = np.float32([1 + 2**-9, 1 + 3 * 2**-8, -1e-3, 3.0e38])
    clip = record(0)
    latents = np.broadcast_to(values, (1, 9, 2, 3, 4))
    clip = LatentRecord(**{**vars(clip), "latents": latents, "anchor": latents[0, 0]})
    write(tmp_path, {(2, 3): [[clip]]})
    got = open_latents(tmp_path)[2, 3][0].latents.astype(np.float32)
    # bfloat16 keeps 8 bits: ties go to the even neighbour.
    np.testing.assert_array_equal(got[0, 0, 0, 0, :2], [1.0, 1 + 2 * 2**-7])
    np.testing.assert_allclose(got[0, 0, 0, 0], values, rtol=2**-8)


def test_tfds_reads_it_without_our_code(tmp_path):
    """No part of this package, and no TensorFlow, is needed to read the files."""
    folder = write(tmp_path, {(2, 3): [[record(0)], [record(1)]]}).folder
    assert folder == tmp_path / "helios_latents" / "1.0.0"
    source = tfds.builder_from_directory(folder).as_data_source(split="2x3")
    assert len(source) == 2
    example = source[1]
    assert example["uid"] == b"clip1"
    assert example["caption"].decode() == "Café number 1."
    assert (example["height"], example["width"]) == (16, 24)
    assert example["latents"].dtype == ml_dtypes.bfloat16
    assert example["latents"].tobytes() == record(1).latents.tobytes()
    assert example["anchor"].tobytes() == record(1).latents[0, 0].tobytes()
    assert example["embeds"].shape == (2, 5)
    assert "tensorflow" not in sys.modules


def test_files_are_the_same_bytes_in_every_process(tmp_path):
    folder = write(tmp_path / "here", {(2, 3): [[record(0)]]}).folder
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from helios_latents_test import *; write(sys.argv[2], {(2, 3): [[record(0)]]})"
    )
    subprocess.run([sys.executable, "-c", code, __file__.rpartition("/")[0], str(tmp_path / "there")], check=True)
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            other = tmp_path / "there" / file.relative_to(tmp_path / "here")
            assert file.read_bytes() == other.read_bytes(), file.name


def test_skipped_clips_and_empty_files(tmp_path):
    lost = Failure(uid="lost", error="it is damaged")
    writer = write(tmp_path, {(2, 3): [[record(0), lost], [lost, lost], [record(1)]], (5, 5): [[lost]]})
    assert writer.report(((2, 3), 0)).skipped == (lost,)
    assert [writer.report(((2, 3), i)).records for i in range(3)] == [1, 0, 1]
    opened = open_latents(tmp_path)
    assert set(opened) == {(2, 3)}
    assert [clip.uid for clip in opened[2, 3]] == ["clip0", "clip1"]
    assert opened[2, 3].where(1).endswith("-00002-of-00003")


def test_nothing_but_failures_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="none of 1 clips could be encoded; the first, lost: it is damaged"):
        write(tmp_path, {(2, 3): [[Failure(uid="lost", error="it is damaged")]]})


def test_unfinished_and_missing_data_sets(tmp_path):
    with pytest.raises(FileNotFoundError, match="no helios_latents in"):
        open_latents(tmp_path)
    writer = LatentWriter(tmp_path, {(2, 3): 2}, SETTINGS)
    writer.write(((2, 3), 1), [record(0)])
    assert not writer.finish()
    with pytest.raises(FileNotFoundError, match="not finished: 1 of 2 files"):
        open_latents(tmp_path)
    assert [slot for slot in writer.slots if not writer.is_finished(slot)] == [((2, 3), 0)]


def test_other_data_sets_are_refused(tmp_path):
    class OtherData(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"uid": np.int64}))

        def _split_generators(self, dl_manager):
            return {"1x1": [(0, {"uid": 0})]}

        def _generate_examples(self):
            raise NotImplementedError

    builder = OtherData(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    with pytest.raises(ValueError, match="other_data without anchor, caption, embeds, latents"):
        open_latents(builder.data_dir)


def test_changed_settings_are_refused(tmp_path):
    write(tmp_path, {(2, 3): [[record(0)]]})
    with pytest.raises(ValueError, match=r"begun with other settings \(seed was 0, now 1\)"):
        LatentWriter(tmp_path, {(2, 3): 1}, {**SETTINGS, "seed": 1})
    with pytest.raises(ValueError, match=r"files was \{'2x3': 1\}, now \{'2x3': 2\}"):
        LatentWriter(tmp_path, {(2, 3): 2}, SETTINGS)
    LatentWriter(tmp_path, {(2, 3): 1}, SETTINGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": np.zeros((2, 8, 2, 3, 4))}, r"'clip0'.*\[2, 8, 2, 3, 4\]; need \[S, 9, 2, 3, C\]"),
        ({"latents": np.zeros((0, 9, 2, 3, 4))}, "at least one chunk"),
        ({"latents": np.zeros((2, 9, 2, 4, 4))}, r"need \[S, 9, 2, 3, C\]"),
        ({"anchor": np.zeros((2, 3, 5))}, r"anchor of shape \[2, 3, 5\]; need \[2, 3, 4\]"),
        ({"embeds": np.zeros((1, 2, 3))}, "text embeddings of shape"),
    ],
)
def test_wrong_shapes_are_not_written(tmp_path, change, message):
    writer = LatentWriter(tmp_path, {(2, 3): 1}, SETTINGS)
    with pytest.raises(ValueError, match=message):
        writer.write(((2, 3), 0), [LatentRecord(**{**vars(record(0)), **change})])
    assert not writer.is_finished(((2, 3), 0))
    assert not list(tmp_path.rglob("*-of-00001"))


def test_a_full_disk_loses_nothing(tmp_path):
    writer = LatentWriter(tmp_path, {(2, 3): 2}, SETTINGS)
    writer.write(((2, 3), 0), [record(0)])
    partial = writer.folder / "helios_latents-2x3.array_record-00001-of-00002.partial"
    partial.symlink_to("/dev/full")
    with pytest.raises(ValueError, match=r"cannot write .*No space left on device.*finished files are kept"):
        writer.write(((2, 3), 1), [record(1)])
    assert [writer.is_finished(slot) for slot in writer.slots] == [True, False]
    partial.unlink()
    writer.write(((2, 3), 1), [record(1)])
    assert writer.finish()
    assert [clip.uid for clip in open_latents(tmp_path)[2, 3]] == ["clip0", "clip1"]


@pytest.fixture
def damaged(tmp_path):
    """Six records in two files; a bit of record 1 of file 1 is flipped."""
    clips = [record(number, size=(8, 8)) for number in range(6)]
    folder = write(tmp_path, {(8, 8): [clips[:3], clips[3:]]}).folder
    (file,) = folder.glob("*00001-of-00002")
    content = bytearray(file.read_bytes())
    # Records follow one another from the start; one is 9 kB of random numbers, compressed to 7.6 kB.
    content[11000] ^= 1
    file.write_bytes(content)
    return tmp_path


def test_damaged_records_are_named(damaged):
    records = open_latents(damaged)[8, 8]
    with pytest.raises(RecordError, match=r"record 1 of .*-00001-of-00002 cannot be read: .*hash mismatch"):
        records[4]
    assert [records[index].uid for index in (0, 1, 2, 3, 5)] == ["clip0", "clip1", "clip2", "clip3", "clip5"]


def test_loaders_stop_at_damaged_records_or_skip_them(damaged, tmp_path):
    options = {"batch": 6, "seed": 0, "text": PaddedEmbeds(tokens=8)}
    with pytest.raises(RecordError, match=r"record 1 of .*00001-of-00002 cannot be read"):
        next(latent_loader([damaged], **options))
    report = tmp_path / "report.jsonl"
    loader = latent_loader([damaged], on_error="skip", report=report, **options)
    batch = next(loader)
    next(loader)
    assert batch.target.shape == (6, 9, 8, 8, 4)
    assert batch.target.dtype == ml_dtypes.bfloat16
    # Record 5, the next one, takes its place; text tells them apart.
    assert sorted(np.count_nonzero(batch.text.embeds.any(-1), axis=1)) == [1, 2, 3, 4, 6, 6]
    (line,) = report.read_text().splitlines()
    assert "record 1 of" in json.loads(line)["error"]


def test_damaged_records_can_be_skipped_in_memory_as_on_disk(damaged):
    settings = {"folders": (str(damaged),), "tokens": 8}
    with pytest.raises(RecordError, match=r"record 1 of .*00001-of-00002 cannot be read"):
        Latents(in_memory=True, **settings).batches(6, (0, 1), 0)
    on_disk, in_memory = (
        Latents(in_memory=in_memory, on_error="skip", **settings).batches(6, (0, 1), 0) for in_memory in (False, True)
    )
    for _ in range(2):
        a, b = next(on_disk), next(in_memory)
        np.testing.assert_array_equal(a.target, b.target)
        np.testing.assert_array_equal(a.text.embeds, b.text.embeds)


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """Two records in two files; a folder that tests copy."""
    folder = tmp_path_factory.mktemp("intact")
    write(folder, {(2, 3): [[record(0)], [record(1)]]})
    return folder


@pytest.fixture
def copied(intact, tmp_path):
    shutil.copytree(intact, tmp_path / "data")
    return tmp_path / "data" / "helios_latents" / "1.0.0"


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"{}", b"3", b"\xff\xfe", b"{'a': 1}", b'{"name": "x"}'])
def test_damaged_metadata_is_named_and_written_again(copied, name, content):
    whole = (copied / name).read_bytes()
    (copied / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"^.*1\.0\.0.* is damaged.*run helios-prepare again.*$"):
        open_latents(copied)
    writer = LatentWriter(copied.parents[1], {(2, 3): 2}, SETTINGS)
    assert writer.finish()
    assert (copied / name).read_bytes() == whole
    assert not list(copied.glob("metadata-*"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{DATASET}", "../{DATASET}", "outside of its folder"),
        ("{DATASET}", "/etc/{DATASET}", "outside of its folder"),
        ('"2x3"', '"2by3"', "does not describe its files: '2by3' is not a size"),
        ('"1"', '"-1"', "does not describe its files"),
        ("array_record", "tfrecord", "does not describe its files"),
    ],
)
def test_metadata_that_claims_what_is_not_so_is_refused(copied, old, new, message):
    info = copied / "dataset_info.json"
    info.write_text(info.read_text().replace(old, new))
    with pytest.raises(ValueError, match=rf"^.*dataset_info\.json.*{message}.*$"):
        open_latents(copied)


def test_missing_and_truncated_files_are_named(copied):
    (first, second) = sorted(copied.glob("*array_record*"))
    second.write_bytes(second.read_bytes()[:-100])
    with pytest.raises(RecordError, match=rf"^record 0 of {second} cannot be read: .*$"):
        open_latents(copied)[2, 3][1]
    first.unlink()
    with pytest.raises(FileNotFoundError, match=rf"^{first} is missing, with 1 clips"):
        open_latents(copied)


@pytest.mark.parametrize("name", ["prepare.json", "progress/2x3-00001.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff"])
def test_damaged_records_of_a_job_are_named(copied, name, content):
    (copied / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is damaged .*remove it"):
        LatentWriter(copied.parents[1], {(2, 3): 2}, SETTINGS).finish()


def test_two_processes_do_not_write_one_file(tmp_path):
    writer, rival = (LatentWriter(tmp_path, {(2, 3): 2}, SETTINGS) for _ in range(2))

    def records():
        with pytest.raises(BlockingIOError, match=r"-00000-of-00002 is being written by another process"):
            rival.write(((2, 3), 0), [record(5)])
        rival.write(((2, 3), 1), [record(1)])
        yield record(0)

    writer.write(((2, 3), 0), records())
    assert writer.finish()
    assert [clip.uid for clip in open_latents(tmp_path)[2, 3]] == ["clip0", "clip1"]
    assert not list(tmp_path.rglob("*.lock"))


@pytest.mark.parametrize("name", ["latents", "anchor", "embeds"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_numbers_that_are_not_finite_are_not_used(name, value):
    array = np.array(getattr(record(0), name))
    array.flat[-1] = value
    with pytest.raises(ValueError, match=f"its {name} are not all finite"):
        LatentRecord(**{**vars(record(0)), name: array}).check((2, 3))


def test_sizes_are_split_names():
    assert size_name((48, 80)) == "48x80"
    assert parse_size("48x80") == (48, 80)
    for bad in ("48", "48x", "x80", "48x80x3", "0x80", "axb"):
        with pytest.raises(ValueError, match="is not a size such as 48x80"):
            parse_size(bad)
