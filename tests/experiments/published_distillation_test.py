"""Stage 3 against the configuration files of the released models (Helios, arXiv 2603.04379).

The table was typed from the released training configuration "stage 3, post".
"""

import dataclasses
import functools
import json
import math
import pathlib

import jax
import pytest
from flax import nnx

from helios_jax.checkpoints.components import find_component
from helios_jax.config import PipelineConfig, SchedulerConfig, TransformerConfig
from helios_jax.distillation.gan import Gan
from helios_jax.experiments import stage1_init, stage3_distill, stage3_distill_gan
from helios_jax.models.discriminator import Discriminator, DiscriminatorConfig
from helios_jax.training.ema import Ema
from helios_jax.training.experiment import Experiment
from helios_jax.training.networks import Networks
from helios_jax.training.overrides import frozen
from helios_jax.training.params import flatten, values_by_pattern

PIPELINES = pathlib.Path(__file__).parents[1] / "parity" / "data" / "pipelines"

PUBLISHED = {
    "seed": 49,
    "optimizers": [
        (2e-6, (0.0, 0.999), 1e-8, 1e-3, 10.0, "constant", 0),
        (4e-7, (0.0, 0.999), 1e-8, 1e-3, 10.0, "constant", 0),
    ],
    "adapters": [(256, 1251.4), (256, 1246.3)],
    "drops": (0.4, 0.0, 0.5),
    "corruption": (0.1, 0.0, 1 / 3, "frame"),
    "saturation": (0.1, (0.3, 0.999), (1.001, 1.7)),
    "history": ((16, 2, 1), 9),
    "ema": Ema(decay=0.99, start=750),
    "ratio": 5,
    "guidance": 3.0,
    "levels": (500, 20, 980),
    "steps": (2, 2, 2),
    "amplified": True,
    "checkpoint_every": 250,
    "validation": ((2, 2, 2), 1.0),
    "off": (None, None, "random", "last"),
    "text_tokens": 512,
}


@functools.cache
def experiment(size: str = "14b") -> Experiment:
    return frozen(stage3_distill.get_config(size))


def adapter_size(lora, trainable) -> float:
    """Millions of parameters of the 14B model that are trained; nothing is computed."""
    transformer = find_component("transformer").abstract(TransformerConfig.helios_14b(), "bfloat16")
    add = functools.partial(lora.add, key=jax.random.key(0))
    params = flatten(jax.eval_shape(add, Networks(transformer=transformer)))[1]
    trains = values_by_pattern(trainable, params, 0)
    return round(sum(math.prod(array.shape) for path, array in params.items() if trains[path]) / 1e6, 1)


def test_the_published_recipe():
    settings, method = experiment(), experiment().method
    context = method.context
    adamws = [settings.optimizer, method.critic_optimizer]
    adapters = [(settings.lora, settings.trainable), (method.critic_lora, method.critic_trainable)]
    assert {
        "seed": settings.seed,
        "optimizers": [
            (a.learning_rate, a.betas, a.eps, a.weight_decay, a.clip_norm, a.schedule, a.warmup_steps) for a in adamws
        ],
        "adapters": [(lora.alpha or lora.rank, adapter_size(lora, trainable)) for lora, trainable in adapters],
        "drops": (context.drop.t2v, context.drop.i2v, context.drop.v2v),
        "corruption": (
            context.corruption.clean,
            context.corruption.blur,
            context.corruption.max_sigma,
            context.corruption.sigma_per,
        ),
        "saturation": (context.saturation.clean, context.saturation.pale, context.saturation.strong),
        "history": (context.layout.sizes, context.layout.chunk_frames),
        "ema": settings.ema,
        "ratio": method.ratio,
        "guidance": method.guidance,
        "levels": (method.levels.uniform_from, method.levels.low, method.levels.high),
        "steps": method.steps,
        "amplified": method.amplify_first_chunk,
        "checkpoint_every": settings.checkpoint_every,
        "validation": (settings.validation.steps, settings.validation.guidance_scale),
        "off": (method.own, method.decoupled, method.exits, method.score_levels),
        "text_tokens": settings.data.tokens,
    } == PUBLISHED
    assert settings.data.windows == 2
    assert context.decide == "sample"  # published: once for the samples of a GPU


def test_the_product_is_sampled_as_the_released_model():
    """model_index.json and scheduler_config.json of the released Distilled."""
    index = json.loads((PIPELINES / "distilled" / "model_index.json").read_text())
    schedule = json.loads((PIPELINES / "distilled" / "scheduler" / "scheduler_config.json").read_text())
    product = experiment().product
    assert product.config == PipelineConfig.from_diffusers(index)
    assert product.scheduler == experiment().method.scheduler == SchedulerConfig.from_diffusers(schedule)


def test_the_small_model_is_trained_alike():
    large, small = experiment(), experiment("1_3b")
    parts = {
        "method": dataclasses.replace(small.method, score=large.method.score),
        "product": dataclasses.replace(small.product, parts=large.product.parts),
    }
    assert dataclasses.replace(small, **parts) == large


@pytest.mark.parametrize("size", stage1_init.SMALL)
def test_the_small_world_is_distilled_into_few_steps(size):
    settings = experiment(size)
    assert settings.product.config.is_distilled
    assert settings.data.drop_text == 0
    assert settings.method.context.drop.t2v == 0


def test_the_published_discriminator():
    """Its own table: everything else is the recipe without a discriminator, except for blur."""
    without, settings = experiment(), frozen(stage3_distill_gan.get_config("14b"))
    gan, context = settings.method.gan, settings.method.context
    method = dataclasses.replace(settings.method, gan=None, context=without.method.context)
    assert dataclasses.replace(settings, method=method) == without
    corruption = dataclasses.replace(without.method.context.corruption, blur=0.1)
    assert context == dataclasses.replace(without.method.context, corruption=corruption)
    published = Gan.published()
    assert (published.crops, published.reals) == ("independent", "generator")
    assert gan == dataclasses.replace(published, crops="shared", reals="critic")
    assert gan == Gan(
        start_step=1000,
        generator_weight=0.05,
        discriminator_weight=0.01,
        r1=100.0,
        r1_sigma=0.1,
        r2=0.0,
        crop=0.5,
        heads=DiscriminatorConfig(hooks=(5, 15, 25, 35), width=768, groups=32, final=True),
    )
    heads = jax.eval_shape(lambda: Discriminator(gan.heads, 5120, 16, rngs=nnx.Rngs(0)))
    assert sum(math.prod(array.shape) for array in flatten(heads)[1].values()) == 988_359_941
    gan.check(TransformerConfig.helios_14b(), 9, 48, 80)


@pytest.mark.parametrize("size", stage1_init.SMALL)
def test_the_small_discriminator_fits_the_small_world(size):
    settings = frozen(stage3_distill_gan.get_config(size))
    layers = {"tiny": 4, "tiny_gpu": 8, "helios_tiny": 6}[size]
    settings.method.gan.check(dataclasses.replace(TransformerConfig.helios_14b(), num_layers=layers), 9, 8, 8)
