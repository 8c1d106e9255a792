"""The command helios-prepare."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helios_jax import load_diffusers, prepare
from helios_jax.checkpoints.random import write_random_checkpoint
from helios_jax.data.helios_latents.reader import open_latents
from helios_jax.data.helios_latents.record import LatentRecord
from helios_jax.data.moving_shapes import caption, sample_scene
from helios_jax.data.prepare.clips import ShapesClip
from helios_jax.data.prepare.encode import ClipEncoder, EncodeOptions, one_behind, uid_hash
from helios_jax.data.prepare.job import Status
from helios_jax.data.workers import ahead_of_time
from helios_jax.media.pixels import to_signed
from helios_jax.media.reading import load_video
from helios_jax.media.video_writer import VideoWriter
from helios_jax.models.tokenization import TextEncoder, Tokenizer
from helios_jax.models.vae import normalize

PT_LATENTS = pathlib.Path(__file__).parent / "parity" / "data" / "pt_latents" / "clips"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    write_random_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> pathlib.Path:
    """Two good clips, one too short, one without caption, one damaged."""
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for name, count in (("a", 70), ("b", 40), ("short", 20), ("silent", 40)):
        steps = rng.integers(-9, 10, (count, 2, 4, 3)).cumsum(0).clip(-128, 127) + 128
        with VideoWriter(folder / f"{name}.mp4") as writer:
            writer.write(steps.astype(np.uint8).repeat(8, 1).repeat(8, 2))
    (folder / "damaged.mp4").write_bytes((folder / "b.mp4").read_bytes()[:700])
    for name in ("a", "b", "short", "damaged"):
        (folder / f"{name}.txt").write_text(f"The clip {name}.\n")
    return folder


def call(*arguments: object) -> int:
    return prepare.main(prepare.parse(["helios-prepare", *map(str, arguments)]))


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# One size for all tests, so that the encoder is compiled once.
SMALL = ("--sizes=16x32", "--min_frames=33")
SHAPES = ("--moving_shapes=5", "--max_frames=33", "--clips_per_file=2", *SMALL)


@pytest.fixture(scope="module")
def prepared(model, videos, tmp_path_factory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("latents")
    assert call(f"--model={model}", f"--clips={videos}", f"--out={out}", *SMALL) == 3
    return out


@pytest.fixture(scope="module")
def shapes(model, tmp_path_factory) -> pathlib.Path:
    """The data set of SHAPES, made without interruption."""
    out = tmp_path_factory.mktemp("shapes")
    assert call(f"--model={model}", f"--out={out}", *SHAPES) == 0
    return out


def test_latents_are_posterior_samples_of_each_chunk(model, videos, prepared):
    vae = load_diffusers(model, "vae", dtype="float32")
    encode = jax.jit(vae.encode)
    records = open_latents(prepared)[2, 4]
    assert [(record.uid, len(record.latents)) for record in records] == [("a", 2), ("b", 1)]
    for record in records:
        frames = load_video(videos / f"{record.uid}.mp4", 16, 32)
        for number, latents in enumerate(record.latents):
            chunk = to_signed(frames[33 * number : 33 * number + 33])
            mean, logvar = encode(chunk[None])
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), uid_hash(record.uid)), number)
            raw = mean + jnp.exp(logvar / 2) * jax.random.normal(key, mean.shape[1:])
            wanted = np.asarray(normalize(vae.config, raw))[0]
            # bfloat16 rounds by at most 2^-9.
            np.testing.assert_allclose(latents.astype(np.float32), wanted, rtol=2**-8, atol=1e-4)
        np.testing.assert_array_equal(record.anchor, record.latents[0, 0])
        assert (record.height, record.width) == (16, 32)


def test_embeddings_are_those_of_the_pipeline_without_padding(model, prepared):
    encoder = TextEncoder.create(load_diffusers(model, "text_encoder", dtype="bfloat16"), Tokenizer.from_folder(model))
    for record in open_latents(prepared)[2, 4]:
        assert record.caption == f"The clip {record.uid}."
        tokens = len("_The_clip_x.") + 1
        padded = np.asarray(encoder([record.caption], 512)[0])
        assert record.embeds.shape == (tokens, 32)
        np.testing.assert_allclose(
            record.embeds.astype(np.float32), padded[:tokens].astype(np.float32), rtol=2**-7, atol=2**-7
        )
        assert not padded[tokens:].any()


def test_clips_that_cannot_be_used_are_skipped_and_listed(prepared):
    lines = (prepared / "skipped-2x4.jsonl").read_text().splitlines()
    errors = {entry["uid"]: entry["error"] for entry in map(json.loads, lines)}
    assert set(errors) == {"short", "silent", "damaged"}
    assert {entry["uid"] for entry in map(json.loads, lines) if entry["by_rule"]} == {"short"}
    assert errors["short"] == "it has 20 frames; at least 33 are needed"
    assert errors["silent"] == "it has no caption"
    assert "cannot read the video" in errors["damaged"]
    assert "damaged.mp4: Invalid data" in errors["damaged"]


def test_latents_depend_on_neither_neighbours_nor_division(model, shapes, tmp_path):
    options = [f"--model={model}", *SHAPES]
    for index in (1, 0):  # the worker that comes last completes the data set
        assert call(*options, f"--out={tmp_path}", f"--shard_index={index}", "--num_shards=2") == 0
        assert (tmp_path / "helios_latents" / "1.0.0" / "dataset_info.json").exists() == (index == 0)
    assert contents(tmp_path) == contents(shapes)
    encoder = ClipEncoder.load(model, EncodeOptions(min_frames=33, batch=1))
    clips = [ShapesClip(seed=0, index=index, frames=33) for index in (3, 1)]
    for record, index in zip(encoder(clips, (2, 4)), (3, 1), strict=True):
        np.testing.assert_array_equal(record.latents, open_latents(shapes)[2, 4][index].latents)


@pytest.mark.slow
def test_processes_and_the_number_of_shapes(model, shapes, tmp_path):
    options = [f"--model={model}", *SHAPES]
    assert call(*options, "--processes", "--readers=2", f"--out={tmp_path / 'same'}") == 0
    assert contents(tmp_path / "same") == contents(shapes)
    assert call(*options, "--moving_shapes=2", "--num_shapes=2", f"--out={tmp_path / 'pairs'}") == 0
    records = open_latents(tmp_path / "pairs")[2, 4]
    assert [record.uid for record in records] == ["moving_shapes-2-0-0", "moving_shapes-2-0-1"]
    assert [record.caption for record in records] == [caption(sample_scene(0, i, num_shapes=2)) for i in range(2)]
    assert call(*options, "--moving_shapes=2", "--style=textured", f"--out={tmp_path / 'textured'}") == 0
    records = open_latents(tmp_path / "textured")[2, 4]
    assert [record.uid for record in records] == ["moving_shapes-textured-0-0", "moving_shapes-textured-0-1"]
    assert [record.caption for record in records] == [caption(sample_scene(0, i, style="textured")) for i in range(2)]


@pytest.mark.slow
def test_two_devices_encode_the_same_bits_as_one(model, shapes, tmp_path):
    environment = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-m", "helios_jax.prepare", f"--model={model}", f"--out={tmp_path}", *SHAPES]
    command += ["--no-text", "--moving_shapes=3"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "loaded on 2 devices" in done.stdout
    for got, wanted in zip(open_latents(tmp_path)[2, 4], open_latents(shapes)[2, 4], strict=False):
        assert got.latents.tobytes() == wanted.latents.tobytes()


class Interrupted(ClipEncoder):
    """Stops before the clip number ``stop``, counting over all calls, as Ctrl-C would; remembers what it encoded."""

    stop = None
    encoded: list[str]

    def __call__(self, clips, size):
        for clip, outcome in zip(clips, super().__call__(clips, size), strict=True):
            if len(self.encoded) == self.stop:
                raise KeyboardInterrupt
            self.encoded.append(clip.uid)
            yield outcome


@pytest.fixture
def counted(monkeypatch) -> type[Interrupted]:
    """Replaces the command's encoder with one that counts clips and can be stopped."""
    Interrupted.encoded, Interrupted.stop = [], None
    load = prepare._load_encoder

    def wrapped(*arguments, **options):
        return Interrupted(**vars(load(*arguments, **options)))

    monkeypatch.setattr(prepare, "_load_encoder", wrapped)
    return Interrupted


@pytest.mark.parametrize("stop", [1, 3])
def test_interrupted_runs_go_on_and_end_with_the_same_bytes(model, shapes, tmp_path, counted, stop, capsys):
    names = [f"moving_shapes-0-{index}" for index in range(5)]
    counted.stop = stop
    command = [f"--model={model}", f"--out={tmp_path}", *SHAPES]
    assert call(*command) == 130
    assert "what was written so far is kept" in capsys.readouterr().err
    assert counted.encoded == names[:stop]
    assert list(tmp_path.rglob("*.partial"))
    counted.stop, counted.encoded[:] = None, []
    assert call(*command) == 0
    assert counted.encoded == names[stop // 2 * 2 :]  # files of two clips; finished ones are kept
    assert contents(tmp_path) == contents(shapes)
    counted.encoded.clear()
    assert call(*command) == 0
    assert counted.encoded == []


def test_bad_clips_are_listed_at_the_end(model, videos, prepared, capsys):
    """Also by a run that finds the work done."""
    assert call(f"--model={model}", f"--clips={videos}", f"--out={prepared}", *SMALL) == 3
    lines = capsys.readouterr().out.splitlines()
    assert "1 clips were left out, 2 could not be used; see" in lines[-4]
    assert [line.split(":")[0] for line in lines[-3:]] == ["  damaged", "  silent", "  short"]


def test_edited_captions_do_not_mix(model, videos, tmp_path, monkeypatch, capsys):
    def encode(clips, size):
        for clip in clips:
            latents = np.zeros((1, 9, *size, 16))
            yield LatentRecord(
                uid=clip.uid,
                caption=clip.caption,
                fps=24,
                height=16,
                width=32,
                latents=latents,
                anchor=latents[0, 0],
                embeds=np.ones((1, 2)),
            )

    monkeypatch.setattr(prepare, "_load_encoder", lambda *arguments, **options: encode)
    file = tmp_path / "clips.json"
    command = (f"--model={model}", f"--clips={file}", f"--out={tmp_path / 'out'}", f"--root={videos}", *SMALL)
    for caption_text, code in (("One.", 0), ("One.", 0), ("Two.", 1)):
        file.write_text(json.dumps([{"path": "a.mp4", "cap": caption_text}]))
        assert call(*command) == code
    assert "was begun with other settings (clips was" in capsys.readouterr().err


def test_other_settings_do_not_mix(model, shapes, capsys):
    assert call(f"--model={model}", f"--out={shapes}", *SHAPES, "--seed=1") == 1
    error = capsys.readouterr().err
    assert "was begun with other settings" in error
    assert "seed was 0, now 1" in error


def test_json_lists_and_several_sizes(model, videos, tmp_path, monkeypatch, capsys):
    def encode(clips, size):
        for clip in clips:
            latents = np.zeros((1, 9, *size, 16))
            embeds = np.ones((1, 2))
            fields = {"uid": clip.uid, "caption": clip.caption, "fps": clip.fps, "height": 8 * size[0]}
            yield LatentRecord(**fields, width=8 * size[1], latents=latents, anchor=latents[0, 0], embeds=embeds)

    monkeypatch.setattr(prepare, "_load_encoder", lambda *arguments, **options: encode)
    entries = [
        {"path": "a.mp4", "cut": [0, 33], "cap": ["Wide."]},
        {"path": "a.mp4", "cut": [33, 66], "crop": [8, 16, 0, 16], "cap": ["Tall."], "fps": 12.5},
    ]
    (tmp_path / "clips.json").write_text(json.dumps(entries))
    out = tmp_path / "out"
    options = ("--sizes=16x32,32x16", f"--root={videos}")
    assert call(f"--model={model}", f"--clips={tmp_path / 'clips.json'}", f"--out={out}", *options) == 0
    assert "2 clips, latent sizes 2x4 (1), 4x2 (1)" in capsys.readouterr().out
    opened = open_latents(out)
    ((wide,), (tall,)) = opened[2, 4], opened[4, 2]
    assert (wide.uid, wide.caption, tall.caption, tall.fps) == ("a.mp4[0:33]", "Wide.", "Tall.", 24)


def test_files_of_the_original_are_imported(tmp_path, capsys):
    assert call(f"--from_pt={PT_LATENTS}", f"--out={tmp_path}", "--min_frames=33") == 0
    with np.load(PT_LATENTS.parent / "expected.npz") as expected:
        for name, record in zip(("a", "b"), open_latents(tmp_path)[2, 3], strict=True):
            wanted = jnp.asarray(np.moveaxis(expected[f"{name}/vae_latent"], 1, -1), jnp.bfloat16)
            np.testing.assert_array_equal(record.latents, np.asarray(wanted))


def test_beam_writes_the_same_records(model, videos, prepared, tmp_path):
    pytest.importorskip("apache_beam")
    beam = "--beam=--runner=DirectRunner --direct_num_workers=1"
    assert call(f"--model={model}", f"--clips={videos}", f"--out={tmp_path}", beam, *SMALL) == 3
    wanted = {record.uid: record for record in open_latents(prepared)[2, 4]}
    records = list(open_latents(tmp_path)[2, 4])
    assert {record.uid for record in records} == set(wanted)
    for record in records:
        other = wanted[record.uid]
        assert (record.caption, record.fps) == (other.caption, other.fps)
        np.testing.assert_array_equal(record.embeds, other.embeds)
        np.testing.assert_array_equal(record.latents, other.latents)
    skipped = {json.loads(line)["uid"] for line in (tmp_path / "skipped-2x4.jsonl").read_text().splitlines()}
    assert skipped == {"short", "silent", "damaged"}


def test_beam_is_optional(model, videos, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    assert call(f"--model={model}", f"--clips={videos}", f"--out={tmp_path}", "--beam", *SMALL) == 1
    assert "--beam needs Apache Beam: pip install 'helios_jax[beam]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one of --clips, --moving_shapes, --from_pt, --prompts, --from_ode_pt; got none"),
        (["--clips=x", "--from_pt=y"], "got --clips, --from_pt"),
        (["--clips=x"], "give --model"),
        (["--clips=missing.json", "--model={model}"], "no file missing.json"),
        (["--clips={videos}", "--model=nowhere"], "nowhere is neither a folder nor a hub id"),
        (["--moving_shapes=1", "--model={model}", "--max_frames=5"], "--max_frames=5 is below --min_frames=121"),
        (["--moving_shapes=1", "--model={model}", "--sizes=384x632"], "384x632 must be multiples of 16"),
        (["--moving_shapes=1", "--model={model}", "--num_shards=2"], "--shard_index and --num_shards go together"),
        (
            ["--moving_shapes=1", "--model={model}", "--num_shards=2", "--shard_index=2"],
            "worker 2 of 2: workers are numbered from 0 to 1",
        ),
        (["--moving_shapes=1", "--model={model}", "--num_shards=2", "--shard_index=0", "--beam"], "--beam divides"),
        (["--clips=x", "--model={model}", "--style=textured"], "--style=textured is for procedural scenes"),
        (["--from_pt={videos}"], "no .pt file"),
        (["--moving_shapes=1", "--model={model}", "--out={videos}/a.mp4"], "a.mp4 is a file; give a folder"),
    ],
)
def test_bad_arguments_are_one_line(model, videos, tmp_path, capsys, arguments, message):
    arguments = [argument.format(model=model, videos=videos) for argument in arguments]
    assert call(f"--out={tmp_path}", *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("helios-prepare: ")
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--video_fps=nan", "'nan' is neither frames per second nor 'stored'"),
        ("--video_fps=0", "neither frames per second nor"),
        ("--video_fps=fast", "neither frames per second nor"),
        ("--fit=zoom", "invalid choice: 'zoom'"),
        ("--sizes=1x", "is not a size"),
        ("--clips=", "is not a path"),
        ("--moving_shapes=0", "--moving_shapes=0 must be a whole number of at least 1"),
        ("--batch=two", "--batch='two' must be a whole number of at least 1"),
        ("--seed=-1", "--seed=-1 must be a whole number from 0 to 4294967295"),
        ("--modle=C", "unknown flag --modle; did you mean --model?"),
    ],
)
def test_bad_values_of_flags(flag, message, capsys):
    with pytest.raises(SystemExit) as caught:
        prepare.parse(["helios-prepare", "--out=x", flag])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    flags = [f"--{name}=~/{name}" for name in ("out", "model", "clips", "root", "from_pt", "cache")]
    args = prepare.parse(["helios-prepare", *flags, "--video_fps=stored"])
    assert {str(getattr(args, name)) for name in ("out", "model", "clips", "root", "from_pt", "cache")} == {
        f"{tmp_path}/{name}" for name in ("out", "model", "clips", "root", "from_pt", "cache")
    }
    assert args.video_fps is None


def test_a_missing_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("helios_jax.extras._missing", lambda extra: ["array_record"])
    assert call(f"--out={tmp_path}", "--moving_shapes=1", "--model=x") == 1
    assert "preparing data sets needs array_record: pip install 'helios_jax[train]'" in capsys.readouterr().err


def test_nothing_encoded_is_an_error(model, videos, tmp_path, capsys):
    assert call(f"--model={model}", f"--clips={videos}", f"--out={tmp_path}", "--sizes=16x32") == 1
    assert "none of 5 clips could be encoded; the first, a: it has 70 frames" in capsys.readouterr().err


def test_help_is_instant_and_import_is_light():
    code = (
        "import sys; import helios_jax.prepare as p\n"
        "try: p.parse(['helios-prepare', '--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('jax', 'numpy', 'tensorflow_datasets', 'grain', 'av') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--moving_shapes" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_progress_line():
    status = Status(done=3, total=12, skipped=1, seconds=1.5)
    assert str(status) == "3 of 12 clips, 1 skipped, 2.00 clips/s, 4 s left"


def test_iterators():
    assert list(one_behind(iter([]))) == []
    events = []
    source = (events.append(("asked", i)) or i for i in range(3))
    for item in one_behind(source):
        events.append(("got", item))
    assert events == [("asked", 0), ("asked", 1), ("got", 0), ("asked", 2), ("got", 1), ("got", 2)]
    assert list(ahead_of_time(lambda x: x * x, range(7), 3)) == [x * x for x in range(7)]
