"""Invalid input is refused before any work starts, in a message that says what was given and what is needed."""

import dataclasses
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import helios_jax as hx
from helios_jax.checkpoints.random import write_random_checkpoint
from helios_jax.checkpoints.settings import read_settings
from helios_jax.models.tokenization import TextEncoder
from helios_jax.sampling.conditioning import Conditioner
from helios_jax.sampling.request import Request, RequestDefaults, SampleInputs
from helios_jax.sampling.settings import SampleSettings

SMALL = {"height": 64, "width": 64, "steps": (1, 1, 1), "max_text_tokens": 8, "num_frames": 33}


@pytest.fixture
def idle(monkeypatch, compiled, pipelines):
    """Fails the test if anything was encoded or compiled."""

    def reached(*_, **__):
        pytest.fail("work was started before the input was checked")

    monkeypatch.setattr(TextEncoder, "__call__", reached)
    monkeypatch.setattr(Conditioner, "history_of", reached)
    pipelines("base")
    pipelines("distilled")
    compiled.clear()
    yield
    assert compiled == []


def embeds(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def with_value(array: np.ndarray, value: float) -> np.ndarray:
    """The array with another value in one place."""
    array[(0, 3, 2, 1)[: array.ndim]] = value
    return array


REFUSED = {
    "height": ({"height": 100}, r"height=100, width=64: .* multiples of 64 x 64 .* height=128, width=64$"),
    "width": ({"width": 70}, r"width=70: .*nearest valid size is height=64, width=64$"),
    "no size": ({"height": 0}, r"nearest valid size is height=64, width=64$"),
    "one number of steps": ({"steps": 2}, r"steps=2 given; this model needs 3 numbers, one per pyramid level"),
    "two numbers of steps": ({"steps": (2, 2)}, r"steps=\(2, 2\) given; this model needs 3 numbers"),
    "no steps": ({"steps": (2, 0, 2)}, r"steps=\(2, 0, 2\) given; every level needs at least 1 step"),
    "no frames": ({"num_frames": 0}, r"num_frames=0 must be a whole number from 1 to 1000000000"),
    "no end": ({"num_frames": None}, r"num_frames=None never ends: use stream\(\)"),
    "no prompts": ({"prompt": []}, r"prompt is an empty list"),
    "prompt and embeddings": ({"prompt_embeds": embeds(1, 8, 24)}, r"prompt and prompt_embeds are both given"),
    "neither": ({"prompt": None}, r"give prompt or prompt_embeds; .* prompt=''"),
    "embeddings of another width": (
        {"prompt": None, "prompt_embeds": embeds(1, 8, 32)},
        r"prompt_embeds has shape \(1, 8, 32\); \[1, tokens, 24\] is needed",
    ),
    "embeddings without batch": (
        {"prompt": None, "prompt_embeds": embeds(8, 24)},
        r"prompt_embeds has shape \(8, 24\); \[batch, tokens, width\] is needed",
    ),
    "image and video": (
        {"image": embeds(64, 64, 3), "video": embeds(33, 64, 64, 3)},
        r"image and video are both given",
    ),
    "image of another layout": ({"image": embeds(3, 64, 64)}, r"shape \[3, 64, 64\], need \[H, W, 3\]"),
    "short video": ({"video": embeds(32, 64, 64, 3)}, r"the video has 32 frames; at least 33 are needed"),
    "guidance that is no number": ({"guidance_scale": float("nan")}, r"guidance_scale=nan must be a finite number"),
    "no room for text": ({"max_text_tokens": 0}, r"max_text_tokens=0 must be a whole number from 1 to 4096"),
    "prompt of another type": ({"prompt": 5}, r"prompt must be a str or a list of str .*, got 5"),
    "prompt of bytes": ({"prompt": b"fox"}, r"prompt must be a str or a list of str"),
    "prompts of other types": ({"prompt": ["a", None]}, r"prompt must be a str or a list of str"),
    "half a character": ({"prompt": "fox \ud83d"}, r"prompt='fox \\ud83d' is not valid Unicode"),
    "schedule with half a character": (
        {"prompt": hx.PromptSchedule(prompts=["a", "\udcff"], blend_chunks=0)},
        r"the prompts of a PromptSchedule='\\udcff' is not valid Unicode",
    ),
    "embeddings without tokens": (
        {"prompt": None, "prompt_embeds": embeds(1, 0, 24)},
        r"prompt_embeds has shape \(1, 0, 24\): at least one token is needed",
    ),
    "ragged embeddings": ({"prompt": None, "prompt_embeds": [[1.0], [1.0, 2.0]]}, r"prompt_embeds is not an array"),
    "embeddings without videos": ({"prompt": None, "prompt_embeds": embeds(0, 8, 24)}, r"has shape \(0, 8, 24\)"),
    "embeddings of integers": (
        {"prompt": None, "prompt_embeds": np.zeros((1, 8, 24), int)},
        r"prompt_embeds has dtype int64; floating-point embeddings are needed",
    ),
    "embeddings of texts": ({"prompt": None, "prompt_embeds": "a fox"}, r"prompt_embeds has shape \(\)"),
    "embeddings with NaN": (
        {"prompt": None, "prompt_embeds": with_value(embeds(1, 8, 24), np.nan)},
        r"prompt_embeds holds 1 values that are not finite, the first at \[0, 3, 2\]",
    ),
    "embeddings with infinity": (
        {"prompt": None, "prompt_embeds": jnp.asarray(with_value(embeds(1, 8, 24), -np.inf), jnp.bfloat16)},
        r"prompt_embeds holds 1 values that are not finite",
    ),
    "embeddings beyond float32": (
        {"prompt": None, "prompt_embeds": with_value(np.zeros((1, 8, 24)), 1e300)},
        r"prompt_embeds holds 1 values that are not finite",
    ),
    "image with NaN": ({"image": with_value(embeds(64, 64, 3), np.nan)}, r"float pixels must lie in \[0, 1\], got nan"),
    "image of 0 to 255": ({"image": embeds(64, 64, 3) + 255}, r"float pixels must lie in \[0, 1\], got 255"),
    "video with NaN": ({"video": with_value(embeds(99, 64, 64, 3), np.nan)}, r"float pixels must lie in \[0, 1\]"),
    "video of -1 to 1": ({"video": embeds(33, 64, 64, 3) - 1}, r"float pixels must lie in \[0, 1\], got -1"),
    "image that is a number": ({"image": 5}, r"shape \[\], need \[H, W, 3\]"),
    "frames as text": ({"num_frames": "33"}, r"num_frames='33' must be a whole number from 1 to 1000000000"),
    "height as float": ({"height": 64.0}, r"height=64\.0 must be a whole number"),
    "steps as float": ({"steps": (1.5, 1, 1)}, r"steps=1\.5 must be a whole number"),
    "negative seed": ({"seed": -1}, r"seed=-1 must be a whole number from 0 to 18446744073709551615"),
    "negative lookahead": ({"lookahead": -1}, r"lookahead=-1 must be a whole number from 0 to 8"),
    "endless lookahead": ({"lookahead": 10**6}, r"lookahead=1000000 must be a whole number from 0 to 8"),
    "no noise": ({"noise": 5}, r"noise=5 must have the methods of a NoiseSource"),
    "no callback": ({"on_step": "print"}, r"on_step='print' must be a function"),
    "another progress": ({"progress": "no"}, r"progress='no' must be True or False"),
    "empty slices": ({"vae_slice_frames": 0}, r"vae_slice_frames=0 must be a whole number of at least 1"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.usefixtures("idle", "unchecked")
def test_refused(distilled, case):
    arguments, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        distilled(**{"prompt": "a fox", "progress": False, **SMALL, **arguments})


GUIDED = {
    "negative prompts": ({"negative_prompt": ["a", "b"]}, r"negative_prompt has 2 texts for a batch of 1"),
    "negative prompt and embeddings": (
        {"negative_prompt": "a", "negative_prompt_embeds": embeds(1, 8, 24)},
        r"negative_prompt and negative_prompt_embeds are both given",
    ),
    "negative embeddings": (
        {"negative_prompt_embeds": embeds(2, 8, 24)},
        r"negative_prompt_embeds has shape \(2, 8, 24\); \[1, tokens, 24\] is needed",
    ),
    "negative schedule": (
        {"negative_prompt": hx.PromptSchedule(prompts=["a"])},
        r"negative_prompt is a PromptSchedule: the negative prompt is the same for all chunks",
    ),
    "negative number": ({"negative_prompt": 0}, r"negative_prompt must be a str or a list of str .*, got 0"),
    "negative embeddings with NaN": (
        {"negative_prompt_embeds": with_value(embeds(1, 8, 24), np.nan)},
        r"negative_prompt_embeds holds 1 values that are not finite",
    ),
    "another length": (
        {"negative_prompt_embeds": embeds(1, 7, 24)},
        r"the prompt is 8 tokens long and the negative prompt 7, but guidance runs both as one batch",
    ),
    "steps": ({"steps": (20, 20, 20)}, r"steps=\(20, 20, 20\) given; this model needs one number, .* steps=50"),
    "height": ({"height": 72}, r"multiples of 16 x 16 \(1 pyramid level\(s\)\).* height=64, width=64$"),
    "width": ({"width": 90}, r"nearest valid size is height=64, width=96$"),
}


@pytest.mark.parametrize("case", GUIDED)
@pytest.mark.usefixtures("idle", "unchecked")
def test_refused_by_base(pipelines, case):
    arguments, message = GUIDED[case]
    with pytest.raises(ValueError, match=message):
        pipelines("base").stream(**{"prompt": "a fox", **SMALL, "steps": 2, **arguments})


@pytest.mark.usefixtures("idle")
def test_unguided_negative_prompts_are_not_looked_at(distilled):
    request = resolve(distilled, negative_prompt=["a", "b"])
    assert not request.guided


def resolve(pipe: hx.HeliosPipeline, settings: SampleSettings | None = None, **inputs) -> Request:
    """The checked call, for an empty prompt by default."""
    inputs = SampleInputs(**{"prompt": "", **inputs})
    return pipe._defaults.resolve(inputs, settings or SampleSettings(), has_text_encoder=True)


@pytest.mark.parametrize(
    ("kind", "steps", "scale", "amplify"),
    [("base", (50,), 5.0, False), ("mid", (20, 20, 20), 5.0, False), ("distilled", (2, 2, 2), 1.0, True)],
)
def test_defaults_are_the_published_ones(pipelines, kind, steps, scale, amplify):
    request = resolve(pipelines(kind))
    found = (request.steps, request.guidance_scale, request.amplify_first_chunk, request.num_chunks, request.batch)
    assert found == (steps, scale, amplify, 4, 1)
    assert request.guided == (scale > 1)


@pytest.mark.usefixtures("idle")
def test_files_that_cannot_be_read(distilled, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the video .*absent\.mp4 does not exist"):
        distilled.stream("a fox", video=tmp_path / "absent.mp4", **SMALL)
    with pytest.raises(FileNotFoundError, match=r"the image .*absent\.png does not exist"):
        distilled.stream("a fox", image=tmp_path / "absent.png", **SMALL)
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(ValueError, match=r"cannot read the video .*text\.mp4.*re-encode"):
        distilled.stream("a fox", video=str(tmp_path / "text.mp4"), **SMALL)


@pytest.mark.usefixtures("idle")
def test_without_text_encoder_embeddings_are_needed(distilled, pipelines):
    with pytest.raises(ValueError, match="loaded without a text encoder: give prompt_embeds"):
        dataclasses.replace(distilled, text_encoder=None).stream("a fox", **SMALL)
    guided = dataclasses.replace(pipelines("base"), text_encoder=None)
    with pytest.raises(ValueError, match="loaded without a text encoder: give negative_prompt_embeds"):
        guided.stream(prompt_embeds=embeds(1, 8, 24), **SMALL | {"steps": 2})


@pytest.mark.slow
@pytest.mark.usefixtures("undecoded")
def test_guidance_on_a_distilled_model_warns_and_is_applied(distilled):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="guidance_scale")
        plain = distilled("a fox", progress=False, guidance_scale=1.0, **SMALL).latents
    with pytest.warns(UserWarning, match=r"guidance_scale=2\.0 on a distilled model.*doubles the cost.*1\.0 is"):
        guided = distilled("a fox", "blurry", progress=False, guidance_scale=2.0, **SMALL).latents
    assert np.abs(guided - plain).mean() > 0.01


@pytest.mark.usefixtures("undecoded")
def test_long_text_warns(distilled):
    with pytest.warns(UserWarning, match=r"a prompt has \d+ tokens and the limit is 8"):
        distilled.stream("a red fox trots through fresh snow", **SMALL)


def test_prompt_schedule_is_one_video(distilled):
    schedule = hx.PromptSchedule(prompts=["a fox", "a dog"])
    assert resolve(distilled, prompt=schedule).batch == 1
    assert resolve(distilled, prompt=["a fox", "a dog"]).batch == 2


@pytest.mark.usefixtures("undecoded")
@pytest.mark.filterwarnings("ignore:a prompt has")  # the published negative prompt, cut to 8 tokens
def test_one_default_negative_prompt(pipelines):
    """None is the published negative prompt, "" the empty text."""
    base = pipelines("base")
    settings = SampleSettings(**SMALL | {"steps": 1})

    def latents(*negative: str | list[str]) -> np.ndarray:
        return base("a fox", *negative, settings=settings, progress=False).latents

    default = latents()
    np.testing.assert_array_equal(default, latents(hx.NEGATIVE_PROMPT))
    np.testing.assert_array_equal(default, latents([hx.NEGATIVE_PROMPT]))
    assert np.abs(default - latents("")).max() > 1e-4


def test_calls_are_checked_without_weights(tmp_path):
    write_random_checkpoint(tmp_path)
    defaults = RequestDefaults.of(read_settings(tmp_path))
    request = defaults.resolve(SampleInputs(prompt="a fox"), SampleSettings(height=64, width=128, num_frames=40))
    assert (request.num_chunks, request.num_frames, request.batch) == (2, 65, 1)
    exact = defaults.resolve(
        SampleInputs(prompt="a"), SampleSettings(height=64, width=64, num_frames=40, exact_frames=True)
    )
    assert (exact.num_chunks, exact.num_frames) == (2, 40)
    with pytest.raises(ValueError, match="height=65, width=64"):
        defaults.resolve(SampleInputs(prompt="a fox"), SampleSettings(height=65, width=64))
