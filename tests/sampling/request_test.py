"""Invalid input is refused before any work starts, in a message that says what was given and what is needed."""

import dataclasses
import warnings

import numpy as np
import pytest

import helios_jax as hx
from helios_jax.models.tokenization import TextEncoder
from helios_jax.sampling.conditioning import Conditioner
from helios_jax.sampling.request import Request, SampleInputs
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


REFUSED = {
    "height": ({"height": 100}, r"height=100, width=64: .* multiples of 64 x 64 .* height=128, width=64$"),
    "width": ({"width": 70}, r"width=70: .*nearest valid size is height=64, width=64$"),
    "no size": ({"height": 0}, r"nearest valid size is height=64, width=64$"),
    "one number of steps": ({"steps": 2}, r"steps=2 given; this model needs 3 numbers, one per pyramid level"),
    "two numbers of steps": ({"steps": (2, 2)}, r"steps=\(2, 2\) given; this model needs 3 numbers"),
    "no steps": ({"steps": (2, 0, 2)}, r"steps=\(2, 0, 2\) given; every level needs at least 1 step"),
    "no frames": ({"num_frames": 0}, r"num_frames=0 must be a whole number of at least 1"),
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
    "empty slices": ({"vae_slice_frames": 0}, r"vae_slice_frames=0 must be a whole number of at least 1"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.usefixtures("idle")
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
    "another length": (
        {"negative_prompt_embeds": embeds(1, 7, 24)},
        r"the prompt is 8 tokens long and the negative prompt 7, but guidance runs both as one batch",
    ),
    "steps": ({"steps": (20, 20, 20)}, r"steps=\(20, 20, 20\) given; this model needs one number, .* steps=50"),
    "height": ({"height": 72}, r"multiples of 16 x 16 \(1 pyramid level\(s\)\).* height=64, width=64$"),
    "width": ({"width": 90}, r"nearest valid size is height=64, width=96$"),
}


@pytest.mark.parametrize("case", GUIDED)
@pytest.mark.usefixtures("idle")
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
