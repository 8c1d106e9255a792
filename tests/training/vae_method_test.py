"""Training of the VAE: closed forms of the loss, gradients where the decoder clips, latent statistics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from method_cases import keys

from helios_jax.checkpoints.random import random_network
from helios_jax.config import VaeConfig
from helios_jax.models.network import Network
from helios_jax.models.vae import WanVae, normalize, to_model_range
from helios_jax.models.vae_layers import frames_together
from helios_jax.parallel.execution import SAMPLING
from helios_jax.training.batch import VideoBatch
from helios_jax.training.methods.vae import Vae, decode_unbounded, measure_latents, prepare_vae
from helios_jax.training.networks import Networks

CONFIG = VaeConfig(
    base_dim=4,
    num_res_blocks=1,
    dim_mult=(1, 1, 1),
    temporal_downsample=(True, True),
    scale_factor_spatial=4,
    z_dim=4,
    latents_mean=(0.0,) * 4,
    latents_std=(1.0,) * 4,
)


def random_vae() -> Network[WanVae]:
    generator = np.random.default_rng(0)
    return random_network(
        WanVae,
        CONFIG,
        "float32",
        lambda mean, std, shape, dtype: jnp.asarray(mean + std * generator.standard_normal(shape), dtype),
    )


def clips(batch: int, seed: int = 0) -> VideoBatch:
    frames = np.random.default_rng(seed).integers(0, 256, (batch, 5, 8, 12, 3), np.uint8)
    return VideoBatch(frames=jnp.asarray(frames))


@pytest.fixture(scope="module")
def vae() -> Network[WanVae]:
    return random_vae()


def test_pixels_span_the_range_of_the_model():
    frames = np.arange(256, dtype=np.uint8)[None, :, None, None, None].repeat(3, -1)
    pixels = np.asarray(to_model_range(frames))[0, :, 0, 0, 0]
    np.testing.assert_allclose(pixels, np.linspace(-1, 1, 256), atol=1e-6)


@pytest.mark.slow
def test_loss_in_numpy(vae):
    batch, own = clips(2), keys(2)
    noise = Vae().draw(Networks(vae=vae.module), batch, own)
    assert noise.shape == (2, 2, 2, 3, 4)

    methods = [Vae(penalty="l1", kl_weight=0.25), Vae(kl_weight=0.25), Vae(kl_weight=0.25, square_weight=3.0)]

    @jax.jit
    def everything(vae):
        networks = Networks(vae=vae.module)
        mean, logvar = vae.module.encode(to_model_range(batch.frames))
        decoded = decode_unbounded(vae.module, mean + jnp.exp(logvar / 2) * noise)
        losses = [method.loss(networks, batch, own, SAMPLING) for method in methods]
        return losses, mean, logvar, decoded

    losses, mean, logvar, decoded = everything(vae)
    difference = np.asarray(decoded) - (np.asarray(batch.frames) / 127.5 - 1)
    variance = np.exp(np.asarray(logvar))
    kl = (np.asarray(mean) ** 2 + variance - np.log(variance) - 1) / 2
    smooth = np.sqrt(difference**2 + 1e-6)
    for (loss, metrics), reconstruction in zip(
        losses, (np.abs(difference), smooth, smooth + 3 * difference**2), strict=True
    ):
        assert float(metrics["psnr"]) == pytest.approx(10 * np.log10(4 / (difference**2).mean()), rel=1e-4)
        assert float(metrics["reconstruction"]) == pytest.approx(reconstruction.mean(), rel=1e-4)
        assert float(metrics["kl"]) == pytest.approx(kl.mean(), rel=1e-4)
        assert float(loss) == pytest.approx(reconstruction.mean() + 0.25 * kl.mean(), rel=1e-4)


@pytest.mark.slow
def test_pixels_beyond_the_range_still_have_a_gradient(vae):
    module, latents = vae.module, jax.random.normal(jax.random.key(1), (1, 1, 2, 2, 4))
    module.decoder.conv_out.kernel[...] = 30 * module.decoder.conv_out.kernel[...]
    graph, state = nnx.split(module)

    @jax.jit
    def run(state):
        module = nnx.merge(graph, state)
        gradient = jax.grad(lambda state: decode_unbounded(nnx.merge(graph, state), latents).sum())(state)
        return decode_unbounded(module, latents), module.decode(latents), gradient.decoder.conv_out.bias[...]

    wide, bounded, gradient = run(state)
    assert float(jnp.abs(wide).max()) > 1
    np.testing.assert_array_equal(jnp.clip(wide, -1, 1), bounded)
    np.testing.assert_allclose(gradient, wide[..., 0].size, rtol=1e-6)  # every pixel moves with its channel's bias


@pytest.mark.slow
def test_a_prepared_vae_takes_clips_for_stills():
    """Latent frame k is that of frame 4k as a still; every later latent decodes to four equal frames, its still."""
    config = dataclasses.replace(CONFIG, dim_mult=(1, 2, 2))
    vae = WanVae(config, rngs=nnx.Rngs(3))
    vae.encoder.conv_in.bias[...] = jnp.linspace(-1, 1, 4)
    prepare_vae(vae)
    video = to_model_range(clips(2).frames)

    @jax.jit
    def run(state):
        vae = nnx.merge(graph, state)
        mean, logvar = vae.encode(video)
        stills = [vae.encode(video[:, frame : frame + 1])[0] for frame in (0, 4)]
        shown = [vae.decode(still) for still in stills]
        return mean, logvar, jnp.concatenate(stills, 1), vae.decode(mean), jnp.concatenate(shown, 1)

    graph, state = nnx.split(vae)
    mean, logvar, stills, decoded, shown = run(state)
    np.testing.assert_allclose(mean, stills, atol=2e-5)
    np.testing.assert_allclose(decoded, shown[:, [0, 1, 1, 1, 1]], atol=2e-5)
    assert float(jnp.abs(shown[:, 0] - shown[:, 1]).max()) > 1e-2
    assert float(jnp.abs(logvar + 6).max()) < 6  # narrow: noise of about exp(-3)
    # The new kernels have the variance of the old ones.
    fresh = WanVae(config, rngs=nnx.Rngs(3)).decoder.conv_in.kernel[...]
    prepared = vae.decoder.conv_in.kernel[...]
    assert not prepared[:2].any()
    np.testing.assert_allclose(prepared[2], 3**0.5 * fresh[2], rtol=1e-6)


@pytest.mark.slow
def test_frames_together_are_frames_in_turn(vae):
    for frames in (1, 5):
        video = to_model_range(clips(2).frames)[:, :frames]
        turned = jax.jit(lambda vae, video: vae.module.encode(video)[0])(vae, video)
        with frames_together():
            together = jax.jit(lambda vae, video: vae.module.encode(video)[0])(vae, video)
        np.testing.assert_allclose(together, turned, atol=2e-5)


@pytest.mark.slow
def test_a_few_steps_learn_a_picture(vae):
    y, x = np.mgrid[:8, :12] / 12
    picture = np.stack([x, y, 1 - x], -1)
    batch = VideoBatch(frames=jnp.asarray(255 * picture[None, None], jnp.uint8))
    graph, state = nnx.split(Networks(vae=vae.module))
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(state, kept, key):
        def loss(state):
            return Vae(penalty="l1").loss(nnx.merge(graph, state), batch, key[None], SAMPLING)

        (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(state)
        updates, kept = optimizer.update(gradient, kept, state)
        return optax.apply_updates(state, updates), kept, value

    kept, losses = optimizer.init(state), []
    for key in keys(30):
        state, kept, value = step(state, kept, key)
        losses.append(float(value))
    assert np.mean(losses[-5:]) < 0.4 * losses[0]


@pytest.mark.slow
def test_statistics_are_those_of_posterior_samples(vae):
    """Batches of different sizes; the same numbers from many samples, and samples become standardised."""
    batches = [clips(3, seed=1), clips(1, seed=2)]
    config = measure_latents(vae, batches)
    assert dataclasses.replace(config, latents_mean=CONFIG.latents_mean, latents_std=CONFIG.latents_std) == CONFIG

    video = jnp.concatenate([to_model_range(batch.frames) for batch in batches])
    mean, logvar = jax.jit(lambda vae: vae.module.encode(video))(vae)
    noise = jax.random.normal(jax.random.key(0), (500, *mean.shape))
    samples = np.asarray(mean + jnp.exp(logvar / 2) * noise, np.float64).reshape(-1, 4)
    np.testing.assert_allclose(config.latents_mean, samples.mean(0), atol=0.01)
    np.testing.assert_allclose(config.latents_std, samples.std(0), rtol=0.01)
    normalised = np.asarray(normalize(config, jnp.asarray(samples, jnp.float32)))
    np.testing.assert_allclose(normalised.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(normalised.std(0), 1, atol=0.02)


def test_what_cannot_work_is_refused(vae):
    with pytest.raises(ValueError, match="no clips to measure the latents on"):
        measure_latents(vae, [])
    batch = VideoBatch(frames=jnp.zeros((1, 6, 16, 16, 3), jnp.uint8))
    with pytest.raises(ValueError, match=r"clips of 6 frames; the VAE is trained on 4k \+ 1"):
        Vae().loss(Networks(vae=vae.module), batch, keys(1), SAMPLING)
