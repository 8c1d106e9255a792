"""The settings of a sample: one value, and keywords that stand for its fields."""

import dataclasses
import inspect

import numpy as np
import pytest

import helios_jax as hx
from helios_jax.config import SamplingDefaults
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


def test_a_checkpoint_has_defaults_of_its_own(distilled):
    """They apply to what is not passed; settings that are passed as one value hold as they are."""
    defaults = SamplingDefaults(height=64, width=128, max_text_tokens=16)
    pipe = dataclasses.replace(distilled, defaults=defaults)
    with pipe.stream("a") as stream, pipe.stream("a", width=64) as narrow:
        sizes = [(one.request.height, one.request.width) for one in (stream, narrow)]
    assert sizes == [(64, 128), (64, 64)]
    settings = SampleSettings(height=128, width=64, max_text_tokens=16)
    with pipe.stream("a", settings=settings) as stream:
        assert (stream.request.height, stream.request.width) == (128, 64)


@pytest.mark.parametrize(("listed", "steps"), [((), None), ((10,), 10), ([2, 3, 4], (2, 3, 4))])
def test_one_or_many(listed, steps):
    assert one_or_many(listed) == steps


NAN = float("nan")
WRONG = {
    "num_frames": ["33", 33.0, True, 0, -1, [33], NAN],
    "exact_frames": ["false", 0, None],
    "height": ["64", 64.0, None, True, 10**9, NAN],
    "width": ["64", 64.5, None, 10**30],
    "steps": ["2,2,2", (1.5, 1, 1), (1, None, 1), 2.0, True, {2}, 10**9, (1, 1, 10**9)],
    "guidance_scale": ["5", NAN, float("inf"), -float("inf"), 1e39, True, 1 + 2j, [5.0]],
    "amplify_first_chunk": ["yes", 1, 0.0],
    "skip_first_chunk": ["no", None, 1],
    "keep_first_frame": ["false", None],
    "image_sigmas": [
        None,
        0.1,
        (0.1,),
        (0.1, 0.2, 0.3),
        (NAN, 0.2),
        (0.2, 0.1),
        (-0.1, 0.1),
        (0.5, 1.5),
        "ab",
        (None, 1),
    ],
    "video_sigmas": [(0.1, NAN), (0.1, float("inf")), "0.1,0.2"],
    "seed": ["0", 0.5, -1, 2**64, None, True, NAN],
    "max_text_tokens": ["8", 0, 8.0, None, 10**9],
    "vae_slice_frames": ["1", 0, 1.0, True],
    "fit": ["squeeze", None, 1],
    "video_fps": ["24", 0, -24, NAN, float("inf"), 10**6, True],
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(SampleSettings)])
def test_wrong_types_and_ranges_are_refused(field):
    for value in WRONG[field]:
        with pytest.raises(ValueError, match=f"^{field}=") as error:
            SampleSettings(**{field: value})
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.usefixtures("unchecked")
def test_numbers_of_numpy_become_those_of_python():
    settings = SampleSettings(
        num_frames=np.int64(33),
        height=np.uint16(64),
        width=np.array(128),
        steps=np.array([1, 2, 3]),
        guidance_scale=np.float32(1.5),
        skip_first_chunk=np.True_,
        seed=np.uint64(2**64 - 1),
        image_sigmas=np.array([0.25, 0.5]),
        video_sigmas=[0, 1],
    )
    expected = SampleSettings(
        num_frames=33,
        height=64,
        width=128,
        steps=(1, 2, 3),
        guidance_scale=1.5,
        skip_first_chunk=True,
        seed=2**64 - 1,
        image_sigmas=(0.25, 0.5),
        video_sigmas=(0.0, 1.0),
    )
    assert settings == expected
    assert hash(settings) == hash(expected)
    kinds = {type(value) for value in vars(settings).values()}
    assert kinds <= {int, float, bool, str, tuple, type(None)}
    assert SampleSettings(steps=np.int32(7)).steps == 7
    assert SampleSettings(steps=[7]).steps == (7,)


@pytest.mark.usefixtures("unchecked")
def test_typos_name_the_function():
    pipe = hx.HeliosPipeline
    for call, name in ((pipe.__call__, "__call__"), (pipe.stream, "stream"), (pipe.compile, "compile")):
        with pytest.raises(TypeError, match=rf"HeliosPipeline\.{name}\(\) has no argument 'sed'; did you mean seed\?"):
            call(None, sed=3)
    with pytest.raises(ValueError, match=r"settings=\{'height': 64\} must be a SampleSettings"):
        pipe.stream(None, settings={"height": 64})


def test_videos_are_at_most_a_year_long():
    with pytest.raises(ValueError, match=r"num_frames=10+ must be a whole number from 1 to 1000000000"):
        hx.SampleSettings(num_frames=10**30)
