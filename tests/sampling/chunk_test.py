"""The chunk loop: what is compiled and when, the plan of the levels, and steps without a network call."""

import itertools

import jax
import numpy as np
import pytest

from helios_jax.diffusion import level_schedule
from helios_jax.models.transformer import HeliosTransformer
from helios_jax.sampling import chunk as chunk_module
from helios_jax.sampling.plan import plan_chunk

# No other test samples at this size, so that nothing is compiled when these begin.
FRESH = {"height": 128, "width": 64, "max_text_tokens": 8}
SMALL = {"height": 64, "width": 64, "max_text_tokens": 8}


@pytest.mark.filterwarnings("ignore:guidance_scale:UserWarning")
@pytest.mark.parametrize(
    ("kind", "steps", "other_steps", "scales", "levels"),
    [
        pytest.param("distilled", (1, 1, 1), (2, 1, 3), (1.0, 1.0), 3, marks=pytest.mark.slow),
        ("base", 2, 3, (5.0, 3.0), 1),
    ],
    ids=["distilled", "base"],
)
def test_compiles_once(pipelines, compiled, kind, steps, other_steps, scales, levels):
    """One step program per level for all steps and chunks; other values of the arguments find everything compiled."""
    pipe = pipelines(kind)
    chunk_module.denoise_step.clear_cache()
    stream = pipe.stream("a fox", "", num_frames=None, steps=steps, guidance_scale=scales[0], **FRESH)
    for _ in itertools.islice(stream, 2):
        pass
    assert compiled.count("jit(denoise_step)") == levels
    assert compiled.count("jit(begin_level)") <= levels - 1
    assert compiled.count("jit(decode_and_check)") <= 1

    compiled.clear()
    for _ in itertools.islice(stream, 2):
        pass
    pipe("a dog", "blurry", num_frames=66, steps=steps, guidance_scale=scales[1], seed=9, progress=False, **FRESH)
    pipe("a dog", "", num_frames=99, steps=other_steps, guidance_scale=scales[0], progress=False, **FRESH)
    assert compiled == []


@pytest.mark.usefixtures("undecoded")
def test_amplified_first_chunk_needs_no_program_of_its_own(distilled, compiled):
    arguments = {"num_frames": 66, "steps": (1, 1, 1), "progress": False, **SMALL}
    plain = distilled("a fox", amplify_first_chunk=False, **arguments)
    compiled.clear()
    amplified = distilled("a fox", amplify_first_chunk=True, **arguments)
    assert compiled == []
    assert np.abs(plain.latents - amplified.latents)[:, :9].max() > 0.01


@pytest.mark.usefixtures("undecoded")
def test_live_prompt_compiles_the_blend_once(distilled, compiled):
    stream = distilled.stream("a fox", num_frames=None, steps=(1, 1, 1), **SMALL)
    stream.set_prompt("a dog", blend_chunks=4)
    for _ in itertools.islice(stream, 4):
        pass
    compiled.clear()
    stream.set_prompt("a cat", blend_chunks=5)
    for _ in itertools.islice(stream, 5):
        pass
    assert compiled == []


@pytest.mark.usefixtures("undecoded")
def test_bfloat16(pipelines, bfloat16, compiled):
    """The default dtype also has one program per level, and its video is close to that of fp32."""
    arguments = {"num_frames": 66, "steps": (1, 1, 1), "progress": False, **SMALL}
    chunk_module.denoise_step.clear_cache()
    rounded = bfloat16("a fox", **arguments)
    assert compiled.count("jit(denoise_step)") == 3
    compiled.clear()
    bfloat16("a dog", **arguments)
    assert compiled == []
    exact = pipelines("distilled")("a fox", **arguments)
    assert rounded.latents.dtype == np.float32
    # bf16 keeps 8 bits; the error of a few network calls is a few times 2^-8.
    error = np.linalg.norm(rounded.latents - exact.latents) / np.linalg.norm(exact.latents)
    assert 2**-12 < error < 0.05


@pytest.mark.parametrize("amplify", [False, True])
def test_plan_of_a_distilled_chunk(distilled, amplify):
    """384 x 640: 48 x 80 latents; mu of a level counts the tokens of the level below."""
    plans = plan_chunk(
        distilled.scheduler,
        distilled.transformer.module.config,
        steps=(2, 2, 2),
        frames=9,
        size=(48, 80),
        integer_timesteps=True,
        amplify=amplify,
    )
    assert [plan.size for plan in plans] == [(12, 20), (24, 40), (48, 80)]
    assert [plan.transition is None for plan in plans] == [True, False, False]
    for level, (plan, tokens) in enumerate(zip(plans, (540, 540, 2160), strict=True)):
        schedule = level_schedule(distilled.scheduler, level, 2, num_tokens=tokens, amplify=amplify)
        assert len(plan.timesteps) == len(plan.step_scalars) == (4 if amplify else 2)
        np.testing.assert_array_equal(plan.timesteps, np.floor(schedule.timesteps))
        np.testing.assert_allclose(plan.step_scalars[:, 0], schedule.sigmas[:-1], rtol=1e-6)
        np.testing.assert_allclose(plan.step_scalars[:, 1], schedule.sigmas[1:], rtol=1e-6)


def test_plan_of_a_single_stage_keeps_fractions(pipelines):
    base = pipelines("base")
    (plan,) = plan_chunk(
        base.scheduler,
        base.transformer.module.config,
        steps=(50,),
        frames=9,
        size=(48, 80),
        integer_timesteps=False,
    )
    schedule = level_schedule(base.scheduler, 0, 50, num_tokens=9 * 24 * 40)
    np.testing.assert_array_equal(plan.timesteps, schedule.timesteps.astype(np.float32))
    assert (plan.timesteps % 1 != 0).any()
    assert (plan.size, plan.transition) == ((48, 80), None)


@pytest.mark.usefixtures("undecoded")
def test_zero_init_skips_the_network(pipelines, monkeypatch):
    """CFG-Zero* takes its first two steps at velocity zero: of 3 + 1 + 1 steps the network sees the last three."""
    calls = []
    original = chunk_module.denoise_step

    def counted(*args, **kwargs):
        calls.append(float(kwargs["timestep"]))
        return original(*args, **kwargs)

    monkeypatch.setattr(chunk_module, "denoise_step", counted)
    seen = []
    pipe = pipelines("mid")
    next(pipe.stream("a fox", "", num_frames=33, steps=(3, 1, 1), on_step=seen.append, **SMALL))
    assert [(info.level, info.step) for info in seen] == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)]
    assert calls == [info.timestep for info in seen][2:]


@pytest.mark.usefixtures("undecoded")
def test_guidance_doubles_the_batch_of_the_network(pipelines, monkeypatch):
    batches = []
    original = HeliosTransformer.denoise

    def counted(self, latents, *args, **kwargs):
        batches.append(latents.shape[0])
        return original(self, latents, *args, **kwargs)

    monkeypatch.setattr(HeliosTransformer, "denoise", counted)
    arguments = {"num_frames": 33, "steps": 1, "progress": False, **SMALL}
    for scale in (1.0, 2.0):
        chunk_module.denoise_step.clear_cache()
        pipelines("base")("a fox", "", guidance_scale=scale, **arguments)
    assert batches == [1, 2]


@pytest.mark.usefixtures("undecoded")
def test_noise_in_device_memory_survives(pipelines):
    """A noise source may keep its arrays on the device; none of them is donated."""

    class Kept:
        def __init__(self):
            self.draws = {}

        def normal(self, name, shape):
            if name not in self.draws:
                self.draws[name] = jax.random.normal(jax.random.key(len(self.draws)), tuple(shape))
            return self.draws[name]

        uniform = normal

    noise = Kept()
    for kind, steps in (("base", 1), ("distilled", (1, 1, 1))):
        arguments = {"num_frames": 66, "steps": steps, "guidance_scale": 1.0, "progress": False, **SMALL}
        first, second = (pipelines(kind)("a fox", noise=noise, **arguments).latents for _ in range(2))
        np.testing.assert_array_equal(first, second)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "max_tokens", "programs", "steps"),
    [("mid", 16, 3, (4, 3, 3)), ("base", 160, 2, 4)],
)
def test_compile_in_advance_leaves_nothing_to_compile(pipelines, compiled, kind, max_tokens, programs, steps):
    """Texts of 160 tokens come in two lengths."""
    pipe, size = pipelines(kind), {"height": 64, "width": 128, "max_text_tokens": max_tokens}
    assert pipe.compile(**size) > 0
    assert compiled.count("jit(denoise_step)") == programs
    compiled.clear()
    stream = pipe.stream("a fox", "", num_frames=99, seed=5, steps=steps, **size)
    for prompt in ("", "a fox " * (max_tokens // 12), "a dog"):
        next(stream)
        stream.set_prompt(prompt, blend_chunks=0)
    assert compiled == []
