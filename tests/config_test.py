"""Configurations: round trips through the published JSON, and what is refused."""

import dataclasses
import json

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
    (TransformerConfig, {"added_kv_proj_dim": 64}, r"transformer config: added_kv_proj_dim=64.*expected None"),
    (VaeConfig, {"is_residual": True}, r"vae config: is_residual=True"),
    (VaeConfig, {"patch_size": 2}, r"vae config: patch_size=2"),
    (VaeConfig, {"clip_output": False}, r"vae config: clip_output=False"),
    (TextEncoderConfig, {"feed_forward_proj": "relu"}, r"text_encoder config: feed_forward_proj='relu'.*'gated-gelu'"),
    (SchedulerConfig, {"_class_name": "DDIMScheduler"}, r"unknown scheduler 'DDIMScheduler'; supported: "),
    (SchedulerConfig, {"prediction_type": "epsilon"}, r"scheduler config: prediction_type='epsilon'"),
    (SchedulerConfig, {"predict_x0": False}, r"scheduler config: predict_x0=False"),
    (SchedulerConfig, {"thresholding": True}, r"scheduler config: thresholding=True"),
    (SchedulerConfig, {"use_flow_sigmas": False}, r"scheduler config: use_flow_sigmas=False"),
    (SchedulerConfig, {"solver_p": {}}, r"scheduler config: solver_p="),
    (PipelineConfig, {"_class_name": "WanPipeline"}, r"names the pipeline 'WanPipeline'; expected 'HeliosPipeline' or"),
    (PipelineConfig, {}, r"names the pipeline None"),
]


@pytest.mark.parametrize(("kind", "published", "message"), UNSUPPORTED)
def test_unsupported_settings_are_refused(kind, published, message):
    with pytest.raises(ValueError, match=message):
        kind.from_diffusers(published)


INVALID = [
    (
        TransformerConfig,
        {"rope_dim": (44, 42, 40)},
        r"rope_dim \(44, 42, 40\) must sum to head_dim 128, it sums to 126",
    ),
    (TransformerConfig, {"rope_dim": (43, 43, 42)}, r"every part must be even"),
    (TransformerConfig, {"history_scale_mode": "per_layer"}, r"'per_layer' must be 'per_head' or 'scalar'"),
    (VaeConfig, {"z_dim": 8}, r"need z_dim=8 values, got 16 and 16"),
    (VaeConfig, {"dim_mult": (1, 2)}, r"one value per level but the last: 1, got 3"),
    (SchedulerConfig, {"solver": "ddim"}, r"solver 'ddim' must be"),
    (SchedulerConfig, {"num_levels": 2}, r"level_range needs num_levels \+ 1 = 3 values"),
    (SchedulerConfig, {"solver_order": 3}, r"solver_order 3 must be 1 or 2"),
    (SchedulerConfig, {"use_dynamic_shifting": True, "shift": 3.0}, r"dynamic shifting needs shift = 1.0, got 3.0"),
    (SchedulerConfig, {"time_shift_type": "cubic"}, r"'cubic' must be 'exponential' or 'linear'"),
    (SchedulerConfig, {"gamma": 0.5}, r"gamma 0.5 must lie in \(0, 1/3\]"),
    (SchedulerConfig, {"gamma": 0.0}, r"gamma 0.0 must lie in \(0, 1/3\]"),
]


@pytest.mark.parametrize(("kind", "values", "message"), INVALID)
def test_invalid_values_are_refused(kind, values, message):
    with pytest.raises(ValueError, match=message):
        unchecked(kind)(**values)


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
