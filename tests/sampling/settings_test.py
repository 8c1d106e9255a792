"""The settings of a sample: one value, and keywords that stand for its fields."""

import dataclasses
import inspect

import numpy as np
import pytest

import helios_jax as hx
from helios_jax.sampling.settings import SampleSettings, one_or_many

SMALL = {"height": 64, "width": 64, "steps": (1, 1, 1), "max_text_tokens": 8, "num_frames": 33}
PUBLIC = {
    **{"prompt": None, "negative_prompt": None, "prompt_embeds": None, "negative_prompt_embeds": None},
    **{"image": None, "video": None, "num_frames": 132, "height": 384, "width": 640, "steps": None},
    **{"guidance_scale": None, "amplify_first_chunk": None, "skip_first_chunk": False, "seed": 0, "noise": None},
    "max_text_tokens": 512,
}
"""The keywords that users pass, and their defaults."""


@pytest.mark.parametrize("call", ["__call__", "stream", "compile"])
def test_signatures_list_every_setting(call):
    parameters = inspect.signature(getattr(hx.HeliosPipeline, call)).parameters
    assert all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    for field in dataclasses.fields(SampleSettings):
        assert (parameters[field.name].default, parameters[field.name].annotation) == (field.default, field.type)
    if call != "compile":
        assert {name: parameters[name].default for name in PUBLIC} == PUBLIC
        assert parameters["progress"].default is (call == "__call__")


def test_settings_and_keywords_give_one_video(distilled):
    settings = SampleSettings(**SMALL, seed=5)
    by_value = distilled("a fox", settings=dataclasses.replace(settings, seed=3), seed=5, progress=False)
    by_keywords = distilled("a fox", progress=False, **SMALL, seed=5)
    np.testing.assert_array_equal(by_value.latents, by_keywords.latents)
    np.testing.assert_array_equal(by_value.frames, by_keywords.frames)
    with pytest.raises(TypeError, match=r"HeliosPipeline\.stream\(\) has no argument 'heigth'; did you mean height\?"):
        distilled.stream("a fox", settings=settings, heigth=64)
    with pytest.raises(ValueError, match="num_frames=None never ends"):
        distilled("a fox", settings=dataclasses.replace(settings, num_frames=None))


@pytest.mark.parametrize(("listed", "steps"), [((), None), ((10,), 10), ([2, 3, 4], (2, 3, 4))])
def test_one_or_many(listed, steps):
    assert one_or_many(listed) == steps
