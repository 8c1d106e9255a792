"""The files of helios_ode: exact round trips, invariants of records, and the original's files."""

import dataclasses
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from helios_jax.config import SchedulerConfig, TransformerConfig
from helios_jax.data.helios_latents.reader import open_latents
from helios_jax.data.helios_latents.record import RecordError
from helios_jax.data.helios_latents.writer import Failure
from helios_jax.data.helios_ode.reader import open_ode
from helios_jax.data.helios_ode.record import LevelPoints, OdeRecord
from helios_jax.data.helios_ode.torch_files import find_torch_ode, import_torch_ode
from helios_jax.data.helios_ode.writer import OdeWriter
from helios_jax.distillation.grids import merged_schedules

SIZE = (4, 8)


def points(rng, chunks: int, count: int, level: int) -> LevelPoints:
    latents = rng.standard_normal((chunks, count + 1, 9, SIZE[0] >> 2 - level, SIZE[1] >> 2 - level, 4))
    return LevelPoints(
        latents=latents.astype(ml_dtypes.bfloat16),
        timesteps=np.linspace(900 - level, 100, count, dtype=np.float32),
        sigmas=np.linspace(1, 0.1, count, dtype=np.float32),
    )


def record(number: int, chunks: int = 3) -> OdeRecord:
    rng = np.random.default_rng(number)
    return OdeRecord(
        uid=f"prompt{number}",
        caption=f"Café number {number}.",
        embeds=rng.standard_normal((number, 5)).astype(ml_dtypes.bfloat16),
        first=tuple(points(rng, 1, 4, level) for level in range(3)),
        later=tuple(points(rng, chunks - 1, 2, level) for level in range(3)),
    )


def assert_equal(a: OdeRecord, b: OdeRecord) -> None:
    assert (a.uid, a.caption) == (b.uid, b.caption)
    pairs = [(a.embeds, b.embeds)]
    for one, other in zip((*a.first, *a.later), (*b.first, *b.later), strict=True):
        pairs += [(getattr(one, name), getattr(other, name)) for name in ("latents", "timesteps", "sigmas")]
    for one, other in pairs:
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes()


def write(folder, files: list[list]) -> OdeWriter:
    writer = OdeWriter(folder, {SIZE: len(files)}, {"model": "somewhere"})
    for index, outcomes in enumerate(files):
        writer.write((SIZE, index), outcomes)
    assert writer.finish()
    return writer


def test_records_come_back_bit_by_bit(tmp_path):
    records = [record(1), record(2, chunks=5), record(3, chunks=1)]
    write(tmp_path, [records[:2], [Failure(uid="lost", error="bad"), records[2]]])
    opened = open_ode(tmp_path)
    assert {size: len(found) for size, found in opened.items()} == {SIZE: 3}
    for found, wanted in zip(opened[SIZE], records, strict=True):
        found.check(SIZE)
        assert_equal(found, wanted)
        assert found.grid == ((4, 2),) * 3
    assert [found.chunks for found in opened[SIZE]] == [3, 5, 1]


def test_the_video_is_made_of_the_end_points():
    one = record(1, chunks=3)
    assert one.latents.shape == (3, 9, *SIZE, 4)
    np.testing.assert_array_equal(one.latents[0], one.first[2].latents[0, 4])
    np.testing.assert_array_equal(one.latents[2], one.later[2].latents[1, 2])
    for chunk, (levels, place) in ((0, (one.first, 0)), (1, (one.later, 0)), (2, (one.later, 1))):
        assert one.points(chunk) == (levels, place)


def test_records_without_text(tmp_path):
    write(tmp_path, [[dataclasses.replace(record(1), embeds=np.zeros((0, 5)))]])
    assert open_ode(tmp_path)[SIZE][0].embeds.shape == (0, 5)


def changed(part: str, level: int, **changes) -> OdeRecord:
    levels = list(getattr(record(1), part))
    levels[level] = dataclasses.replace(levels[level], **changes)
    return dataclasses.replace(record(1), **{part: tuple(levels)})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (changed("first", 0, latents=np.zeros((1, 5, 9, 2, 2, 4))), r"first, level 0: latents of shape .*\[1, 5, 9, 1"),
        (changed("later", 1, latents=np.zeros((1, 3, 9, 2, 4, 4))), r"later, level 1: .*need \[2, 3, 9, 2, 4, 4\]"),
        (changed("later", 2, sigmas=np.float32([0.5, 0.7])), r"later, level 2: sigmas .* must descend"),
        (changed("later", 2, sigmas=np.float32([0.5, np.nan])), "must descend"),
        (changed("later", 2, timesteps=np.float32([1, np.inf])), "timesteps .* must be finite"),
        (changed("first", 2, timesteps=np.float32([1, 2])), r"first, level 2: timesteps of shape \[2\]"),
        (changed("first", 1, latents=np.full((1, 5, 9, 2, 4, 4), np.inf)), "first, level 1: its latents are not all"),
        (dataclasses.replace(record(1), embeds=np.zeros(3)), "text embeddings of shape"),
        (dataclasses.replace(record(1), later=()), "3 levels of the first chunk and 0"),
    ],
)
def test_bad_records_are_not_written(tmp_path, bad, message):
    with pytest.raises((ValueError, IndexError), match=message):
        bad.check(SIZE)
    writer = OdeWriter(tmp_path, {SIZE: 1}, {})
    with pytest.raises(ValueError, match=rf"(?s)'prompt1' cannot be written.*{message}"):
        writer.write((SIZE, 0), [bad])
    assert not writer.is_finished((SIZE, 0))


def test_other_data_sets_are_refused(tmp_path):
    write(tmp_path, [[record(1)]])
    with pytest.raises(FileNotFoundError, match="no helios_latents in"):
        open_latents(tmp_path)
    with pytest.raises(ValueError, match="helios_ode without anchor, latents; need helios_latents"):
        open_latents(tmp_path / "helios_ode" / "1.0.0")


def test_damaged_records_are_named(tmp_path):
    folder = write(tmp_path, [[record(1)]]).folder
    (file,) = folder.glob("*.array_record-*")
    content = file.read_bytes()
    file.write_bytes(content[:2000] + b"\0" * 500 + content[2500:])
    with pytest.raises(RecordError, match=r"helios_ode-4x8\.array_record-00000-of-00001"):
        open_ode(tmp_path)[SIZE][0]


# Timesteps of the original's files: those of the first chunk; later chunks have entries 0 and 2.
PUBLISHED = (
    (998.5342, 902.2183, 833.9636, 783.0660),
    (742.8216, 640.0038, 547.1926, 462.9951),
    (385.4137, 328.6249, 253.9905, 151.5308),
)


@pytest.mark.parametrize("few", [2, 4])
def test_the_published_grid(few):
    """The teacher's grid has every step of the student, at the published timesteps, and its own 20."""
    scheduler = dataclasses.replace(SchedulerConfig.distilled(), shift_after_upsampling=True)
    grids = merged_schedules(
        scheduler,
        TransformerConfig.helios_14b(),
        student_steps=(few,) * 3,
        teacher_steps=(20,) * 3,
        frames=9,
        size=(48, 80),
    )
    for merged, published in zip(grids, PUBLISHED, strict=True):
        np.testing.assert_allclose(merged.timesteps, published[:: 4 // few], atol=6e-5)
        assert len(merged.schedule.timesteps) == 20 + few - 1  # the first step is common
        assert np.all(np.diff(merged.schedule.sigmas) < -1e-4)
        assert merged.schedule.sigmas[-1] == 0
        np.testing.assert_array_equal(merged.schedule.timesteps[merged.student], merged.timesteps)


def save_torch(path, content) -> None:
    """Writes a file in the format of torch.save, without PyTorch."""
    storages = []

    class Storage:
        def __init__(self, key: int, count: int) -> None:
            self.key, self.count = key, count

    class Pickler(pickle._Pickler):
        def persistent_id(self, obj):
            return (
                ("storage", Named("torch", "FloatStorage"), str(obj.key), "cpu", obj.count)
                if isinstance(obj, Storage)
                else None
            )

        def save_global(self, obj, name=None):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())

        def save(self, obj, save_persistent_id=True):
            if isinstance(obj, Named):
                return self.save_global(obj)
            if isinstance(obj, np.ndarray):
                storages.append(np.ascontiguousarray(obj, np.float32))
                strides = tuple(stride // 4 for stride in storages[-1].strides)
                self.save(Named("torch._utils", "_rebuild_tensor_v2"))
                self.save((Storage(len(storages) - 1, storages[-1].size), 0, obj.shape, strides, False, {}))
                return self.write(pickle.REDUCE)
            return super().save(obj, save_persistent_id)

    @dataclasses.dataclass
    class Named:
        module: str
        name: str

    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("x/data.pkl", "w") as file:
            Pickler(file, protocol=2).dump(content)
        for number, storage in enumerate(storages):
            archive.writestr(f"x/data/{number}", storage.tobytes())


def original(chunks: int = 3, **changes) -> dict:
    """What a file of the original holds, with recognisable numbers."""
    rng = np.random.default_rng(0)
    embeds = np.zeros((1, 16, 8), np.float32)
    embeds[0, :5] = rng.standard_normal((5, 8))
    sections = []
    for chunk in range(chunks):
        step = 1 if chunk == 0 else 2
        levels = []
        for level, timesteps in enumerate(PUBLISHED):
            kept = np.float32(timesteps[::step])
            shape = (len(kept) + 1, 1, 4, 9, SIZE[0] >> 2 - level, SIZE[1] >> 2 - level)
            levels.append({"latents": rng.standard_normal(shape).astype(np.float32), "timesteps": kept})
        sections.append(levels)
    return {"latent_window_size": 9, "prompt_raw": "A fox.", "prompt_embed": embeds, "ode_latents": sections} | changes


def test_files_of_the_original_are_imported(tmp_path):
    (tmp_path / "more").mkdir()
    content = original()
    save_torch(tmp_path / "more" / "fox_3.pt", content)
    (file,) = find_torch_ode(tmp_path)
    (found,) = import_torch_ode([file], SIZE)
    assert (found.uid, found.caption, found.chunks) == ("more/fox_3", "A fox.", 3)
    np.testing.assert_array_equal(found.embeds, content["prompt_embed"][0, :5])
    for chunk in range(3):
        levels, place = found.points(chunk)
        for level, points_of_level in enumerate(levels):
            wanted = content["ode_latents"][chunk][level]["latents"][:, 0]
            np.testing.assert_array_equal(points_of_level.latents[place], np.moveaxis(wanted, 1, -1))
    # The linear shift at 9 x 48 x 80: 0.99948 and 0.65744 with two steps, from the published grids.
    np.testing.assert_allclose(found.later[2].sigmas, [0.99948, 0.65744], atol=1e-5)
    np.testing.assert_allclose(found.later[0].sigmas, [0.99818, 0.35404], atol=1e-5)
    write(tmp_path / "out", [[found]])
    assert open_ode(tmp_path / "out")[SIZE][0].grid == ((4, 2),) * 3


def test_bad_files_of_the_original_are_failures(tmp_path):
    uneven = original()
    uneven["ode_latents"][2][1]["timesteps"] = uneven["ode_latents"][2][1]["timesteps"] - 1
    flat = original()
    flat["ode_latents"][0][0]["latents"] = np.zeros((5, 4, 9, 1, 2))
    cases = {
        "a": (original(ode_latents=[]), "ode_latents cannot be used"),
        "b": (uneven, "its later chunks have different timesteps"),
        "c": (flat, r"need [points + 1, 1, channels, 9, rows, columns]"),
        "d": ({"prompt_raw": "x"}, "holds prompt_raw; need prompt_raw, prompt_embed, ode_latents"),
        "e": (original(prompt_raw=3), "prompt_raw must be a string"),
    }
    for name, (content, _) in cases.items():
        save_torch(tmp_path / f"{name}.pt", content)
    found = list(import_torch_ode(find_torch_ode(tmp_path), SIZE))
    assert [failure.uid for failure in found] == [*cases]
    for failure, (_, message) in zip(found, cases.values(), strict=True):
        assert message in failure.error
    (other,) = import_torch_ode(find_torch_ode(tmp_path)[1:2], (8, 8))
    assert isinstance(other, Failure)
    with pytest.raises(FileNotFoundError, match=r"no \.pt file in"):
        find_torch_ode(tmp_path / "nothing")
