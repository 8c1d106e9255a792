"""Recording trajectories: against the sampler's own callbacks, and through interruptions."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helios_jax import HeliosPipeline, prepare
from helios_jax.checkpoints.random import write_random_checkpoint
from helios_jax.config import PipelineConfig, SchedulerConfig
from helios_jax.data.helios_ode.reader import open_ode
from helios_jax.data.helios_ode.record import OdeRecord
from helios_jax.data.prepare.ode import OdeRecorder, RecordOptions
from helios_jax.data.prepare.ode_prompts import OdePrompt, read_ode_prompts
from helios_jax.diffusion.pyramid import level_schedule
from helios_jax.sampling import producer
from helios_jax.sampling.noise import KeyNoise

MID = SchedulerConfig.mid()
# Five steps of the teacher are at every quarter of a level, so that the student's two or four add none.
OPTIONS = RecordOptions(chunks=2, teacher_steps=(5, 5, 5), max_text_tokens=16, dtype="float32")
SIZE = (8, 8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mid") / "tiny"
    write_random_checkpoint(folder, scheduler=MID, pipeline=PipelineConfig(is_cfg_zero_star=True))
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "prompts.csv"
    file.write_text("id,prompt,seed,negative_prompt\nfox,A fox.,11,\ndog,A dog runs.,,dull\nowl,An owl.,,\n")
    return file


@pytest.fixture(scope="module")
def recorder(model):
    return OdeRecorder.load(model, OPTIONS)


@pytest.fixture(scope="module")
def fox(recorder) -> OdeRecord:
    (record,) = recorder([OdePrompt(uid="fox", text="A fox.", negative="dull", seed=11)], SIZE)
    assert isinstance(record, OdeRecord)
    return record


def rounded(x) -> np.ndarray:
    return np.asarray(jnp.asarray(x, jnp.bfloat16))


@pytest.mark.slow
def test_points_are_what_the_sampler_shows(model, fox, monkeypatch):
    """Against the callbacks of the pipeline: plain guidance, UniPC of order 2, the linear shift."""
    black = np.zeros((1, 33, 64, 64, 3), np.uint8)  # decoding would take most of the time
    monkeypatch.setattr(producer, "decode_and_check", lambda *_, **__: (jax.device_put(black), jnp.bool_(True)))
    pipe = HeliosPipeline.from_pretrained(model, dtype="float32", vae_dtype="float32")
    scheduler = dataclasses.replace(MID, time_shift_type="linear")
    pipe = dataclasses.replace(pipe, scheduler=scheduler, config=PipelineConfig())
    shown = {}

    def on_step(info):
        shown[info.chunk, info.level, info.step + 1] = rounded(info.latents)[0]
        assert info.timestep == np.floor(info.timestep)

    settings = {"height": 64, "width": 64, "num_frames": 66, "steps": (5, 5, 5), "guidance_scale": 5.0}
    video = pipe("A fox.", "dull", seed=11, max_text_tokens=16, on_step=on_step, progress=False, **settings)
    for chunk in range(2):
        levels, place = fox.points(chunk)
        stride = 1 if chunk == 0 else 2
        for level, points in enumerate(levels):
            assert points.points == 4 // stride
            for number in range(1, points.points):
                np.testing.assert_array_equal(points.latents[place, number], shown[chunk, level, number * stride])
            np.testing.assert_array_equal(points.latents[place, -1], shown[chunk, level, 5])
    np.testing.assert_array_equal(fox.latents.reshape(-1, *SIZE, 16), rounded(video.latents)[0])
    fox.check(SIZE)


@pytest.mark.slow
def test_levels_start_from_the_seeds_noise_and_the_level_below(fox):
    noise = np.asarray(KeyNoise.from_seed(11).normal("chunk1/initial", (1, 9, *SIZE, 16)))[0]
    halved = sum(noise[:, i::4, j::4] for i in range(4) for j in range(4)) / 4
    np.testing.assert_array_equal(fox.later[0].latents[0, 0], rounded(halved))
    z = np.asarray(KeyNoise.from_seed(11).normal("chunk1/block2", (1, 9, *SIZE, 16)))[0]
    mean = sum(z[:, i::2, j::2] for i in range(2) for j in range(2)) / 4
    block = np.sqrt(4 / 3) * (z - mean.repeat(2, 1).repeat(2, 2))
    below = fox.later[1].latents[0, -1].astype(np.float32).repeat(2, 1).repeat(2, 2)
    wanted = 0.7498129 * below + 0.4333367 * block
    # The end point below is stored in bfloat16.
    np.testing.assert_allclose(fox.later[2].latents[0, 0].astype(np.float32), wanted, rtol=2**-6, atol=2**-6)


@pytest.mark.slow
def test_noise_levels_are_those_that_the_student_is_sampled_with(fox):
    distilled = SchedulerConfig.distilled()
    for level in range(3):
        tokens = (9, 9, 36)[level]  # nine frames of the level below, in patches of 2 x 2
        for points, amplify in ((fox.first[level], True), (fox.later[level], False)):
            wanted = level_schedule(distilled, level, 2, num_tokens=tokens, amplify=amplify)
            np.testing.assert_array_equal(points.sigmas, np.float32(wanted.sigmas[:-1]))
            np.testing.assert_array_equal(points.timesteps, np.float32(wanted.timesteps))


@pytest.mark.slow
def test_a_record_depends_on_its_seed_alone(recorder, fox):
    """In a batch with others, at another place; float32 sums can differ in the last places."""
    pair = dataclasses.replace(recorder, options=dataclasses.replace(OPTIONS, batch=2))
    others = [OdePrompt(uid=name, text="A dog runs.", negative="", seed=seed) for name, seed in (("a", 1), ("b", 2))]
    same = OdePrompt(uid="fox", text="A fox.", negative="dull", seed=11)
    a, found, b = pair([others[0], same, others[1]], SIZE)
    assert [record.uid for record in (a, found, b)] == ["a", "fox", "b"]
    for one, other in zip((*found.first, *found.later), (*fox.first, *fox.later), strict=True):
        np.testing.assert_allclose(one.latents.astype(float), other.latents.astype(float), rtol=2**-6, atol=2**-6)
    assert np.abs(a.latents.astype(float) - b.latents.astype(float)).mean() > 0.01
    np.testing.assert_array_equal(found.embeds, fox.embeds)
    assert found.embeds.shape == (len("_A_fox.") + 1, 32)


def test_prompts_of_a_file_have_seeds_of_their_own(prompts, tmp_path):
    fox, dog, owl = read_ode_prompts(prompts, seed=0, negative_prompt="blurry")
    assert (fox.uid, fox.text, fox.seed, fox.negative) == ("fox", "A fox.", 11, "blurry")
    assert (dog.negative, dog.seed != owl.seed) == ("dull", True)
    (_, moved, _) = read_ode_prompts(prompts, seed=5, negative_prompt=None)
    assert moved.seed == dog.seed + 5
    file = tmp_path / "bad.csv"
    for row, message in (
        ("a,x,0,\na,y,1,", "line 2: trajectories are recorded from one prompt"),
        ("a,x,0,cat.png", "without an image or a clip"),
    ):
        file.write_text(f"id,prompt,prompt_index,image\n{row}\n")
        with pytest.raises(ValueError, match=message):
            read_ode_prompts(file, seed=0, negative_prompt=None)
    file.write_text("id,prompt,seed\na,x,-1\n")
    with pytest.raises(ValueError, match="line 2: seed=-1 would be drawn anew"):
        read_ode_prompts(file, seed=0, negative_prompt=None)


def call(*arguments: object) -> int:
    return prepare.main(prepare.parse(["helios-prepare", *map(str, arguments)]))


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FLAGS = (
    "--sizes=64x64",
    "--negative_prompt=dull",
    "--chunks=2",
    "--steps=2,2,2",
    "--student_steps=1,1,1",
    "--max_text_tokens=16",
)


class Interrupted:
    """A recorder that stops before prompt number ``stop``, as Ctrl-C would."""

    stop = None

    def __init__(self, recorder) -> None:
        self.recorder, self.done = recorder, []

    def __call__(self, prompts, size):
        for prompt in prompts:
            if len(self.done) == self.stop:
                raise KeyboardInterrupt
            self.done.append(prompt.uid)
            yield from self.recorder([prompt], size)


@pytest.mark.slow
def test_interrupted_jobs_go_on_and_end_with_the_same_bytes(model, prompts, tmp_path, monkeypatch, capsys):
    flags = (f"--model={model}", f"--prompts={prompts}", "--clips_per_file=2", "--dtype=float32", *FLAGS)
    assert call(f"--out={tmp_path / 'whole'}", *flags) == 0
    wrapped = []

    def load(*arguments):
        wrapped.append(Interrupted(prepare_load(*arguments)))
        return wrapped[-1]

    prepare_load = prepare._load_recorder
    monkeypatch.setattr(prepare, "_load_recorder", load)
    monkeypatch.setattr(Interrupted, "stop", 1)
    out = tmp_path / "resumed"
    assert call(f"--out={out}", *flags) == 130
    assert "what was written so far is kept" in capsys.readouterr().err
    assert list(out.rglob("*.partial"))
    monkeypatch.setattr(Interrupted, "stop", 2)
    assert call(f"--out={out}", *flags) == 130
    monkeypatch.setattr(Interrupted, "stop", None)
    assert call(f"--out={out}", *flags) == 0
    assert [recorder.done for recorder in wrapped] == [["fox"], ["fox", "dog"], ["owl"]]
    assert contents(out) == contents(tmp_path / "whole")
    assert call(f"--out={out}", *flags) == 0
    assert len(wrapped) == 3
    records = list(open_ode(out)[SIZE])
    assert [(record.uid, record.chunks, record.grid) for record in records] == [
        (uid, 2, ((2, 1),) * 3) for uid in ("fox", "dog", "owl")
    ]
    settings = json.loads((out / "helios_ode" / "1.0.0" / "prepare.json").read_text())
    assert settings["guidance_scale"] == 5.0
    assert call(f"--out={out}", *flags, "--guidance_scale=4") == 1
    assert "guidance_scale was 5.0, now 4.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sizes=64x96"], "64x96 must be multiples of 64"),
        (["--sizes=64x64,128x64"], "trajectories have one size; --sizes names 2"),
        (["--steps=20"], "this model needs 3 numbers"),
        (["--student_steps=2,2"], "this model needs 3 numbers"),
        (["--beam"], "--beam encodes clips"),
        (["--clips=x"], "got --clips, --prompts"),
        (["--prompts=missing.csv"], "the prompt file missing.csv does not exist"),
    ],
)
def test_bad_arguments_are_one_line(model, prompts, tmp_path, capsys, flags, message):
    given = {flag.partition("=")[0]: flag for flag in (f"--model={model}", f"--prompts={prompts}", *FLAGS, *flags)}
    assert call(f"--out={tmp_path}", *given.values()) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_models_without_a_pyramid_are_refused():
    with pytest.raises(ValueError, match="from a pyramid model such as Helios-Mid"):
        OPTIONS.student_scheduler(SchedulerConfig.base())
