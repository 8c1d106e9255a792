"""Configurations: round trips through the published JSON, and what is refused."""

import dataclasses
import json
import math
import pathlib
import re

import numpy as np
import pytest

from helios_jax.config import (
    HistoryConfig,
    PipelineConfig,
    SchedulerConfig,
    TextEncoderConfig,
    TransformerConfig,
    VaeConfig,
    patch_tokens,
)
from helios_jax.config.fields import SettingError

ROUND_TRIPS = [
    TransformerConfig.helios_14b(),
    TransformerConfig.wan_1_3b(),
    TransformerConfig.tiny(),
    TransformerConfig(is_amplify_history=True, history_scale_mode="scalar", out_channels=None, cross_attn_norm=False),
    VaeConfig.wan_2_1(),
    VaeConfig.tiny(),
    VaeConfig(attn_scales=(0.5, 1.0), decoder_base_dim=64),
    TextEncoderConfig.umt5_xxl(),
    TextEncoderConfig.tiny(),
    SchedulerConfig.base(),
    SchedulerConfig.mid(),
    SchedulerConfig.distilled(),
    SchedulerConfig(solver="euler", shift=3.0, num_levels=2, level_range=(0.0, 0.5, 1.0), gamma=0.25),
    SchedulerConfig(disable_corrector=(0, 1), solver_order=1, solver_type="bh1", lower_order_final=False),
]


@pytest.mark.parametrize("config", ROUND_TRIPS, ids=lambda config: type(config).__name__)
def test_round_trip(config):
    published = json.loads(json.dumps(config.to_diffusers()))
    assert type(config).from_diffusers(published) == config


@pytest.mark.parametrize("config", ROUND_TRIPS, ids=lambda config: type(config).__name__)
def test_every_field_is_published(config):
    """A round trip alone would not notice a field that is dropped and has its default."""
    published = config.to_diffusers().values()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if getattr(config, "solver", None) == "dmd" and (value == field.default or field.name == "solver"):
            continue  # the published class does not know all fields, and its name says the solver
        if field.name != "shift_after_upsampling":  # the research code's variant has no published key
            assert (list(value) if isinstance(value, tuple) else value) in published, field.name


PIPELINES = [
    (PipelineConfig(is_pyramid=False), SchedulerConfig.base(), "HeliosPipeline", "HeliosScheduler"),
    (PipelineConfig(is_cfg_zero_star=True), SchedulerConfig.mid(), "HeliosPyramidPipeline", "HeliosScheduler"),
    (PipelineConfig(is_distilled=True), SchedulerConfig.distilled(), "HeliosPyramidPipeline", "HeliosDMDScheduler"),
]


@pytest.mark.parametrize(("config", "scheduler", "pipeline_class", "scheduler_class"), PIPELINES)
def test_model_index(config, scheduler, pipeline_class, scheduler_class):
    index = json.loads(json.dumps(config.to_diffusers(scheduler)))
    assert index["_class_name"] == pipeline_class
    assert index["scheduler"] == ["diffusers", scheduler_class]
    assert PipelineConfig.from_diffusers(index) == config


def test_the_distilled_scheduler_is_written_as_published():
    """With these keys and no others, diffusers loads it without a message."""
    file = pathlib.Path(__file__).parent / "parity" / "data" / "pipelines" / "distilled" / "scheduler"
    published = json.loads((file / "scheduler_config.json").read_text())
    del published["_diffusers_version"]
    assert json.loads(json.dumps(SchedulerConfig.distilled().to_diffusers())) == published
    other = dataclasses.replace(SchedulerConfig.distilled(), max_shift=1.25, solver_order=1)
    assert SchedulerConfig.from_diffusers(json.loads(json.dumps(other.to_diffusers()))) == other


def test_published_sizes():
    transformer = TransformerConfig.helios_14b()
    assert (transformer.dim, transformer.num_layers, transformer.velocity_channels) == (5120, 40, 16)
    assert TransformerConfig.wan_1_3b().dim == 1536
    assert patch_tokens(transformer, 9, 48, 80) == 9 * 24 * 40
    assert dataclasses.replace(transformer, out_channels=None).velocity_channels == 16


def test_keys_without_effect_are_ignored():
    json = {"_diffusers_version": "0.42.1", "dropout": 0.0, "base_dim": 8}
    assert VaeConfig.from_diffusers(json) == VaeConfig(base_dim=8)


def test_numbers_that_json_writes_as_integers():
    config = SchedulerConfig.from_diffusers({"stages": 1, "stage_range": [0, 1]})
    assert config == SchedulerConfig(num_levels=1, level_range=(0.0, 1.0))
    assert all(isinstance(value, float) for value in config.level_range)


@pytest.mark.parametrize("name", ["midpoint", "heun", "logrho"])
def test_solver_types_that_mean_bh2(name):
    assert SchedulerConfig.from_diffusers({"solver_type": name}).solver_type == "bh2"


UNSUPPORTED = [
    (TransformerConfig, {"added_kv_proj_dim": 64}, r"added_kv_proj_dim=64; expected None"),
    (TransformerConfig, {"qk_norm": "layer_norm"}, r"qk_norm='layer_norm'; expected 'rms_norm_across_heads'"),
    (TransformerConfig, {"_class_name": "WanTransformer3DModel"}, r"_class_name='Wan.*; expected 'HeliosTransformer3"),
    (TransformerConfig, {"restrict_self_attn": True}, r"restrict_self_attn=True; expected False"),
    (VaeConfig, {"_class_name": "AutoencoderKL"}, r"_class_name='AutoencoderKL'; expected 'AutoencoderKLWan'"),
    (VaeConfig, {"is_residual": True}, r"is_residual=True; expected False or None"),
    (VaeConfig, {"is_residual": 0}, r"is_residual=0; expected False or None"),
    (VaeConfig, {"patch_size": 2}, r"patch_size=2"),
    (VaeConfig, {"clip_output": False}, r"clip_output=False"),
    (TextEncoderConfig, {"feed_forward_proj": "relu"}, r"feed_forward_proj='relu'; expected 'gated-gelu'"),
    (TextEncoderConfig, {"model_type": "t5"}, r"model_type='t5'; expected 'umt5'"),
    (TextEncoderConfig, {"architectures": ["T5EncoderModel"]}, r"architectures=\['T5EncoderModel'\]; expected"),
    (TextEncoderConfig, {"dense_act_fn": "relu"}, r"dense_act_fn='relu'; expected 'gelu_new'"),
    (TextEncoderConfig, {"is_gated_act": False}, r"is_gated_act=False; expected True"),
    (SchedulerConfig, {"_class_name": "DDIMScheduler"}, r"_class_name='DDIMScheduler'; expected 'HeliosScheduler' or"),
    (SchedulerConfig, {"prediction_type": "epsilon"}, r"prediction_type='epsilon'"),
    (SchedulerConfig, {"predict_x0": False}, r"predict_x0=False"),
    (SchedulerConfig, {"predict_x0": 1}, r"predict_x0=1; expected True"),
    (SchedulerConfig, {"thresholding": True}, r"thresholding=True"),
    (SchedulerConfig, {"use_flow_sigmas": False}, r"use_flow_sigmas=False"),
    (SchedulerConfig, {"use_karras_sigmas": True}, r"use_karras_sigmas=True"),
    (SchedulerConfig, {"solver_p": {}}, r"solver_p="),
    (SchedulerConfig, {"scheduler_type": "ddim"}, r"scheduler_type='ddim'; expected 'unipc' or 'euler' or 'dmd'"),
    (SchedulerConfig, {"_class_name": "HeliosDMDScheduler", "scheduler_type": "unipc"}, r"scheduler_type='unipc'; exp"),
    (PipelineConfig, {"_class_name": "WanPipeline"}, r"_class_name='WanPipeline'; expected 'HeliosPipeline' or"),
    (PipelineConfig, {}, r"_class_name=None"),
]


@pytest.mark.parametrize(("kind", "published", "message"), UNSUPPORTED)
def test_unsupported_settings_are_refused(kind, published, message):
    with pytest.raises(ValueError, match=message):
        kind.from_diffusers(published)


INVALID = [
    (TransformerConfig, {"rope_dim": (44, 42, 40)}, r"rope_dim=\(44, 42, 40\); expected .* sum to the 128 channels"),
    (TransformerConfig, {"rope_dim": (43, 43, 42)}, r"expected three even numbers"),
    (
        TransformerConfig,
        {"rope_dim": (128, 0, 0)},
        r"rope_dim=\(128, 0, 0\); expected a list of 3 whole numbers from 1",
    ),
    (TransformerConfig, {"history_scale_mode": "per_layer"}, r"='per_layer'; expected 'per_head' or 'scalar'"),
    (TransformerConfig, {"freq_dim": 255}, r"freq_dim=255; expected an even number"),
    (TransformerConfig, {"num_layers": 10**6}, r"num_layers=1000000; expected a whole number from 1 to 1024"),
    (TransformerConfig, {"eps": 1e9}, r"eps=1000000000.0; expected a finite number from 1e-12 to 0.01"),
    (TransformerConfig, {"eps": -1.0}, r"eps=-1.0; expected a finite number"),
    (VaeConfig, {"z_dim": 8}, r"latents_mean=.*; expected 8 numbers"),
    (VaeConfig, {"latents_std": (1.0,) * 15 + (math.nan,)}, r"latents_std=.*nan\); expected a list of finite numbers"),
    (VaeConfig, {"latents_std": (1.0,) * 15 + (0.0,)}, r"latents_std=.* 0.0\); expected .* from 0.0001"),
    (VaeConfig, {"dim_mult": (1, 2)}, r"temporal_downsample=\(False, True, True\); expected 1 values"),
    (VaeConfig, {"dim_mult": ()}, r"dim_mult=\(\); expected 1 to 8 numbers"),
    (VaeConfig, {"scale_factor_spatial": 16}, r"scale_factor_spatial=16; expected 8: the levels .* halve 3 time"),
    (VaeConfig, {"scale_factor_temporal": 8}, r"scale_factor_temporal=8; expected 4"),
    (
        TextEncoderConfig,
        {"vocab_size": 10**12},
        r"vocab_size=1000000000000; expected a whole number from 1 to 16777216",
    ),
    (TextEncoderConfig, {"vocab_size": 1}, r"eos_token_id=1; expected the number of one of the 1 tokens"),
    (TextEncoderConfig, {"max_distance": 8}, r"max_distance=8; expected more than 8"),
    (SchedulerConfig, {"solver": "ddim"}, r"solver='ddim'; expected 'unipc' or"),
    (SchedulerConfig, {"num_levels": 2}, r"level_range=.*; expected 3 ascending numbers from 0 to 1, for 2 level"),
    (SchedulerConfig, {"level_range": (0.0, 0.6, 0.3, 1.0)}, r"level_range=.*; expected 4 ascending numbers"),
    (SchedulerConfig, {"level_range": (0.1, 0.3, 0.6, 1.0)}, r"level_range=.*; expected 4 ascending numbers"),
    (SchedulerConfig, {"solver_order": 3}, r"solver_order=3; expected 1 or 2"),
    (SchedulerConfig, {"use_dynamic_shifting": True, "shift": 3.0}, r"shift=3.0; expected 1.0, because"),
    (SchedulerConfig, {"time_shift_type": "cubic"}, r"'cubic'; expected 'exponential' or 'linear'"),
    (SchedulerConfig, {"gamma": 0.5}, r"gamma=0.5; expected a finite number"),
    (SchedulerConfig, {"gamma": 0.0}, r"gamma=0.0; expected a finite number"),
    (SchedulerConfig, {"num_train_timesteps": 0}, r"num_train_timesteps=0; expected"),
    (SchedulerConfig, {"base_seq_len": 4096}, r"base_seq_len=4096; expected less than 4096"),
    (PipelineConfig, {"is_distilled": "false"}, r"is_distilled='false'; expected True or False"),
    (HistoryConfig, {"sizes": (16, 2)}, r"sizes=\(16, 2\); expected a list of 3 whole numbers"),
    (HistoryConfig, {"chunk_frames": 0}, r"chunk_frames=0; expected a whole number"),
]


@pytest.mark.parametrize(("kind", "values", "message"), INVALID)
def test_invalid_values_are_refused(kind, values, message):
    with pytest.raises(ValueError, match=message):
        unchecked(kind)(**values)


JUNK = [None, True, "1", "", 1.5, -3, math.nan, math.inf, 10**30, [], {}, [None], [[1]], [1, 2, 3, 4, 5], "x" * 10**5]
"""Values of which at most a few fit any one key."""


@pytest.mark.parametrize("config", ROUND_TRIPS, ids=lambda config: type(config).__name__)
def test_every_key_is_checked(config):
    """Each published key is given every kind of junk: it is refused by name, in one line, or it is a valid value."""
    published = json.loads(json.dumps(config.to_diffusers()))
    errors = []
    for key in published:
        for junk in JUNK:
            try:
                assert type(type(config).from_diffusers({**published, key: junk})) is type(config)
            except SettingError as error:
                errors.append((key, error))
    assert len(errors) > 0.7 * len(published) * len(JUNK)
    for key, error in errors:
        assert re.fullmatch(rf"{error.key}=.{{1,300}}; expected .{{1,200}}", str(error))
        # A valid value may contradict another key; then that one is named.
        assert error.key == key or error.key in published


def test_numbers_take_the_type_of_their_field():
    config = TransformerConfig.from_diffusers({"rope_theta": 10000, "patch_size": [1, 2, 2]})
    assert isinstance(config.rope_theta, float)
    assert config.patch_size == (1, 2, 2)
    config = VaeConfig(latents_std=tuple(np.linspace(1, 2, 16).tolist()))
    assert config.latents_std[-1] == 2.0
    hash(config)


def unchecked(kind: type):
    """The class with only its own checks, as users have it; otherwise the tests' type checker would come first."""

    def make(**values):
        config = object.__new__(kind)
        for field in dataclasses.fields(kind):
            object.__setattr__(config, field.name, values.get(field.name, field.default))
        config.__post_init__()

    return make


def test_configurations_are_values():
    assert hash(TransformerConfig.tiny()) == hash(TransformerConfig.tiny())
    assert HistoryConfig() == HistoryConfig(sizes=(16, 2, 1), chunk_frames=9, keep_first_frame=True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        TransformerConfig.tiny().num_layers = 3
