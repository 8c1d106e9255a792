"""Records one step of stage 3, the generator's update and the critic's, with PyTorch.

Run in an environment with ``torch==2.13.0 diffusers==0.42.1 transformers ftfy peft`` (CPU builds):

    python tests/parity/record_distillation_step.py

Writes ``tests/parity/data/distillation_step``: two small transformers as diffusers saves them, ``generator`` and
``score``, and ``<case>.npz`` with results. A case is a set of exits, one per level. Levels have two steps; in
``empty_130`` nothing precedes the chunk, and they have four.

The step is written here from its description in arXiv 2603.04379 around diffusers' transformer and scheduler and PEFT's
LoRA layers. Where the published training and its description differ, the description is followed: the critic takes one
step on the sum of its losses, real samples belong to the context they are judged with, and real and perturbed samples
have the same crop. Timesteps are not rounded. Schedules are those of 384x640 pixels.

**Inputs** are ``NamedDraws(17)``, channels-last, and not stored. X is ``a`` (generator) or ``b`` (critic):

    text, negative                                         [B,5,24]
    X/history, X/anchor    past, in which the generator sees colours changed by SATURATION; zero in an empty context
    b/target               the real sample
    X/initial, X/block1, X/block2                          white noise of the rollout, as sampling names it
    scores/noise, gan/noise, critic/noise                  eps of x_s = (1 - s) x + s eps
    critic/perturbation    added to the cropped real sample
    generator/<layer>.lora_A and .lora_B, critic/...       factors of the adapters, scaled by ``adapt``
    heads/<name>           parameters of the heads, scaled by ``head_parameter``

**Heads** read a crop of the velocity (``final``) and the current tokens after the blocks HOOKS (``hooks.0``,
``hooks.1``); logits [B,3] are in this order. A head is six convolutions, each followed by group normalisation and SiLU,
the mean over frames and pixels, and a linear layer. Parameters are named and laid out as PyTorch has them:

    <head>.convs.<0..5>.weight     [out, in, frames, rows, columns]
    <head>.norms.<0..5>.weight     [WIDTH]
    <head>.linear.weight           [1, WIDTH]
    and a .bias of each

**Recorded** in each file (channels-last; losses without their weights; gradients with them, to be summed):

    level0, level1, x              end points of the generator's rollout
    dmd/fake, dmd/cond, dmd/uncond end points that the scores predict (*)
    dmd/gradient, dmd/loss         what is back-propagated (*), and half its mean square
    gan/logits, gan/loss           of the generator's sample, cropped
    gan/input_gradient             derivative of gan/loss in this crop
    generator/dmd/<layer>.lora_A   gradients of the generator's adapters from dmd/loss
    generator/gan/...              the same from 0.05 gan/loss
    critic/x                       norm of the critic's rollout
    critic/flow_loss, critic/gan_loss, critic/penalty, critic/logits    logits [3,B,3]: fake, real, perturbed
    critic/flow/<layer>.lora_A     gradients of the critic's adapters from flow_loss
    critic/gan/...                 the same from 0.01 gan_loss + 100 penalty
    critic/heads/<name>            gradients of the heads from the latter; of most convolutions the norm alone

(*) in FULL alone; the other files hold the norms of these arrays.
"""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import HeliosDMDScheduler, HeliosTransformer3DModel
from diffusers.pipelines.helios.pipeline_helios_pyramid import calculate_shift
from named_draws import NamedDraws
from peft import LoraConfig
from record_transformer import randomize
from torch import nn

OUT = pathlib.Path(__file__).parent / "data" / "distillation_step"

CONFIG = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "rope_dim": (4, 6, 6),
    "text_dim": 24,
    "freq_dim": 16,
    "ffn_dim": 48,
    "num_layers": 4,
    "in_channels": 4,
    "out_channels": 4,
}
BATCH, RANK, CHANNELS, SIZE = 2, 2, 4, (16, 24)
TOKENS = (540, 2160, 8640)
"""Of the three levels at 384x640 pixels."""
INDICES = {"long": range(1, 17), "mid": (17, 18), "short": (0, 19)}
PATCHERS = ("patch_short", "patch_mid", "patch_long")
DRAWS = NamedDraws(17)

CASES = {"exits_000": (0, 0, 0), "exits_100": (1, 0, 0), "exits_010": (0, 1, 0), "exits_111": (1, 1, 1)}
CASES["empty_130"] = (1, 3, 0)
FULL = "exits_111"

DROPPED = (0, 10)
"""Frames of its past that each sample lacks, the oldest ones."""
SATURATION = (0.6, 1.4)
TIMESTEPS = {"a": (815.0, 340.0), "b": (604.0, 152.0)}
"""Noise levels of the scores and of the critic, by sample."""
CROP, CROP_STARTS = (8, 12), {"a": ((3, 7), (8, 0)), "b": ((5, 11), (0, 4))}

GUIDANCE, GAN_WEIGHT, CRITIC_GAN_WEIGHT, PENALTY_WEIGHT, PENALTY_SIGMA = 3.0, 0.05, 0.01, 100.0, 0.1
HOOKS, WIDTH, GROUPS = (1, 3), 12, 2


def draw(name: str, *shape: int) -> torch.Tensor:
    """A channels-last named draw of every sample, channels first."""
    return torch.from_numpy(DRAWS.normal(name, (BATCH, *shape))).double().moveaxis(-1, 1)


def video(name: str, frames: int = 9, size: tuple[int, int] = SIZE) -> torch.Tensor:
    """A named draw of latents."""
    return draw(name, frames, *size, CHANNELS)


def channels_last(x: torch.Tensor) -> np.ndarray:
    return x.detach().moveaxis(1, -1).numpy().astype(np.float32)


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Makes diffusers compute in fp64 where it asks for fp32."""
    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        yield


def context(window: str, empty: bool, saturation: tuple[float, ...]) -> dict[str, torch.Tensor]:
    """History arguments of the transformer."""
    past, anchor = video(f"{window}/history", 19), video(f"{window}/anchor", 1)
    for sample, dropped in enumerate(DROPPED):
        past[sample, :, :dropped] = 0
    if empty:
        past, anchor = 0 * past, 0 * anchor
    grey = past.mean(1, keepdim=True)
    past = grey + torch.tensor(saturation).double().view(-1, 1, 1, 1, 1) * (past - grey)
    clip = torch.cat([anchor, past], dim=2)
    tiers = {f"latents_history_{name}": clip[:, :, list(indices)] for name, indices in INDICES.items()}
    return tiers | {
        f"indices_latents_history_{name}": torch.tensor([list(indices)] * BATCH) for name, indices in INDICES.items()
    }


def velocity(model: HeliosTransformer3DModel, x, timestep, text, history) -> torch.Tensor:
    repeats = len(x) // BATCH
    history = {name: value.repeat(repeats, *[1] * (value.ndim - 1)) for name, value in history.items()}
    return model(
        hidden_states=x,
        timestep=timestep.repeat(repeats),
        encoder_hidden_states=text.repeat(repeats, 1, 1),
        indices_hidden_states=torch.arange(20, 29).repeat(len(x), 1),
        **history,
        return_dict=False,
    )[0]


def per_frame(function, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    """Applies an image function to every frame of [B,C,T,H,W]."""
    images = function(x.transpose(1, 2).flatten(0, 1), *args, **kwargs)
    return images.unflatten(0, (len(x), -1)).transpose(1, 2)


def block_noise(name: str, size: tuple[int, int], gamma: float) -> torch.Tensor:
    """Correlated noise from named white noise, by the closed form of ``record_pipelines.py``."""
    z = video(name, size=size)
    mean = per_frame(F.interpolate, per_frame(F.avg_pool2d, z, 2), scale_factor=2, mode="nearest")
    return (1 + gamma) ** 0.5 * (z - mean) + max(0.0, 1 - 3 * gamma) ** 0.5 * mean


def rollout(model, window: str, exits: tuple[int, ...], empty: bool) -> list[torch.Tensor]:
    """End points of the levels. Of each level only the call at the exit has a gradient."""
    history, text = context(window, empty, SATURATION), draw_text("text")
    scheduler = HeliosDMDScheduler(use_dynamic_shifting=True, time_shift_type="linear")
    x = video(f"{window}/initial")
    for _ in range(2):
        x = 2 * per_frame(F.avg_pool2d, x, 2)
    ends: list[torch.Tensor] = []
    for level, exit_step in enumerate(exits):
        if level > 0:
            signal = 1 - scheduler.ori_start_sigmas[level]
            alpha = 1 / ((1 + 1 / scheduler.gamma) ** 0.5 * (1 - signal) + signal)
            beta = alpha * (1 - signal) / scheduler.gamma**0.5
            size = tuple(2 * side for side in x.shape[3:])
            x = per_frame(F.interpolate, ends[-1], scale_factor=2, mode="nearest")
            x = alpha * x + beta * block_noise(f"{window}/block{level}", size, scheduler.gamma)
        scheduler.set_timesteps(2, level, mu=calculate_shift(TOKENS[level]), is_amplify_first_chunk=empty)
        grid = {"sigmas": scheduler.sigmas, "timesteps": scheduler.timesteps}
        start = x
        for step in range(exit_step + 1):
            t = scheduler.timesteps[step : step + 1].repeat(BATCH)
            with torch.set_grad_enabled(step == exit_step and torch.is_grad_enabled()):
                v = velocity(model, x, t, text, history)
                end = scheduler.convert_flow_pred_to_x0(v, x, t, **grid)
                if step < exit_step:
                    x = scheduler.add_noise(end, start, scheduler.timesteps[step + 1 : step + 2].repeat(BATCH), **grid)
        ends.append(end)
    return ends


def draw_text(name: str) -> torch.Tensor:
    return torch.from_numpy(DRAWS.normal(name, (BATCH, 5, CONFIG["text_dim"]))).double()


def noise_level(window: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Timesteps of the scores and the nearest entries of the shifted table of noise levels."""
    timesteps = torch.tensor(TIMESTEPS[window]).double()
    table, shift = torch.linspace(1, 0.001, 1000).double(), calculate_shift(TOKENS[-1])
    table = shift * table / (1 + (shift - 1) * table)
    sigma = table[(1000 * table - timesteps[:, None]).abs().argmin(1)]
    return timesteps, sigma.view(-1, 1, 1, 1, 1)


def crop(x: torch.Tensor, window: str) -> torch.Tensor:
    """A part of every sample, each at its own place."""
    rows, columns = CROP
    places = zip(x, CROP_STARTS[window], strict=True)
    return torch.stack([sample[:, :, i : i + rows, j : j + columns] for sample, (i, j) in places])


class Head(nn.Module):
    """Six convolutions and a logit."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        shapes = [
            (3, 1, 1),
            (4, 2, 1),
            (4, 2, 1),
            (3, (2, 1, 1), 1),
            (3, (2, 1, 1), 1),
            ((1, 3, 3), 1, (0, 1, 1)),
        ]
        inputs = [channels, *[WIDTH] * 5]
        self.convs = nn.ModuleList(nn.Conv3d(n, WIDTH, *shape) for n, shape in zip(inputs, shapes, strict=True))
        self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, WIDTH) for _ in shapes)
        self.linear = nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.silu(norm(conv(x)))
        return self.linear(x.mean((2, 3, 4)))[:, 0]


class Discriminator(nn.Module):
    """Heads on a score network; a high logit means fake."""

    def __init__(self, score: HeliosTransformer3DModel) -> None:
        super().__init__()
        dim = CONFIG["num_attention_heads"] * CONFIG["attention_head_dim"]
        self.final = Head(CHANNELS)
        self.hooks = nn.ModuleList(Head(dim) for _ in HOOKS)
        self.score = [score]  # in a list, which keeps its parameters out of this module's
        self.hidden: dict[int, torch.Tensor] = {}
        for block in HOOKS:
            score.blocks[block].register_forward_hook(lambda *call, block=block: self.hidden.update({block: call[2]}))

    def logits(self, x: torch.Tensor, timestep: torch.Tensor, history: dict[str, torch.Tensor]) -> torch.Tensor:
        v = velocity(self.score[0], x, timestep, draw_text("text"), history)
        grid = (x.shape[2], x.shape[3] // 2, x.shape[4] // 2)
        current = [self.hidden[block][:, -np.prod(grid) :].mT.unflatten(2, grid) for block in HOOKS]
        return torch.stack([self.final(v), *(head(h) for head, h in zip(self.hooks, current, strict=True))], dim=1)


def head_parameter(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter of the heads."""
    value = DRAWS.normal(f"heads/{name}", shape)
    if name.endswith(".bias"):
        return np.float32(0.2) * value
    if ".norms." in name:
        return 1 + np.float32(0.2) * value
    return np.float32(np.prod(shape[1:]) ** -0.5) * value


def transformer(name: str, seed: int) -> HeliosTransformer3DModel:
    """A small transformer, saved with bf16 weights."""
    torch.manual_seed(0)
    model = HeliosTransformer3DModel(**CONFIG)
    randomize(model, seed)
    model.patch_embedding.weight.data *= 4  # so that hidden states depend on the sample
    model.proj_out.weight.data *= 0.4  # so that samples keep about the variance of noise
    for parameter in model.parameters():  # not model.to(), which would round the rotary frequencies as well
        parameter.data = parameter.to(torch.bfloat16)
    model.save_pretrained(OUT / name / "transformer")
    return model.double()


def adapt(model: HeliosTransformer3DModel, player: str, extra: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """Adds adapters to every linear layer and to ``extra``; returns their factors."""
    layers = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and "norm" not in name]
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=[*layers, *extra]))
    factors = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            name = name.replace(".default", "").removesuffix(".weight")
            scale = np.float32((0.3 if name.endswith("lora_B") else 1) * parameter.shape[1] ** -0.5)
            values = scale * DRAWS.normal(f"{player}/{name}", parameter.shape)
            parameter.data = torch.from_numpy(values).double()
            factors[name] = parameter
    assert [p.requires_grad for p in model.parameters()].count(True) == len(factors) == 2 * len([*layers, *extra])
    return factors


def gradients(loss: torch.Tensor, parameters: dict[str, nn.Parameter], prefix: str) -> dict[str, np.ndarray]:
    """Derivatives of a loss, zero for parameters that it does not depend on."""
    values = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, materialize_grads=True)
    return {f"{prefix}/{name}": value.numpy() for name, value in zip(parameters, values, strict=True)}


def generator_update(generator, factors, discriminator: Discriminator, exits, empty: bool) -> dict[str, np.ndarray]:
    """Distribution matching, with and without the discriminator."""
    score = discriminator.score[0]
    ends = rollout(generator, "a", exits, empty)
    x, plain = ends[-1], context("a", empty, (1.0, 1.0))
    timestep, sigma = noise_level("a")
    with torch.no_grad():
        noised = (1 - sigma) * x + sigma * video("scores/noise")
        fake = noised - sigma * velocity(score, noised, timestep, draw_text("text"), plain)
        score.disable_adapters()
        cond, uncond = (
            noised - sigma * velocity(score, noised, timestep, draw_text(name), plain) for name in ("text", "negative")
        )
        score.enable_adapters()
        real = cond + GUIDANCE * (cond - uncond)
        gradient = (fake - real) / (x - real).abs().mean((1, 2, 3, 4), keepdim=True)
    dmd_loss = 0.5 * F.mse_loss(x, (x - gradient).detach())

    seen = crop((1 - sigma) * x + sigma * video("gan/noise"), "a")
    logits = discriminator.logits(seen, timestep, plain)
    gan_loss = F.softplus(logits).mean()
    (input_gradient,) = torch.autograd.grad(gan_loss, seen, retain_graph=True)

    arrays = {f"level{level}": channels_last(end) for level, end in enumerate(ends[:-1])}
    arrays |= {"x": channels_last(x), "dmd/gradient": channels_last(gradient), "dmd/loss": dmd_loss.item()}
    arrays |= {"dmd/fake": channels_last(fake), "dmd/cond": channels_last(cond), "dmd/uncond": channels_last(uncond)}
    arrays |= {"gan/logits": logits.detach().numpy(), "gan/loss": gan_loss.item()}
    arrays |= {"gan/input_gradient": channels_last(input_gradient)}
    arrays |= gradients(dmd_loss, factors, "generator/dmd")
    return arrays | gradients(GAN_WEIGHT * gan_loss, factors, "generator/gan")


def critic_update(generator, discriminator: Discriminator, factors, exits, empty: bool) -> dict[str, np.ndarray]:
    """Flow matching on the generator's samples, and the discriminator's losses."""
    plain = context("b", empty, (1.0, 1.0))
    with torch.no_grad():
        x = rollout(generator, "b", exits, empty)[-1]
    timestep, sigma = noise_level("b")
    noise = video("critic/noise")
    noised, real = ((1 - sigma) * clean + sigma * noise for clean in (x, video("b/target")))
    v = velocity(discriminator.score[0], noised, timestep, draw_text("text"), plain)
    flow_loss = F.mse_loss(v, noise - x)

    real = crop(real, "b")
    perturbed = real + PENALTY_SIGMA * video("critic/perturbation", size=CROP)
    logits = discriminator.logits(torch.cat([crop(noised, "b"), real, perturbed]), timestep, plain)
    of_fake, of_real, of_perturbed = logits.chunk(3)
    gan_loss = F.softplus(-of_fake).mean() + F.softplus(of_real).mean()
    penalty = (of_real - of_perturbed).square().mean()
    adversarial = CRITIC_GAN_WEIGHT * gan_loss + PENALTY_WEIGHT * penalty

    arrays = {"critic/x": channels_last(x), "critic/logits": logits.detach().unflatten(0, (3, -1)).numpy()}
    arrays |= {"critic/flow_loss": flow_loss.item(), "critic/gan_loss": gan_loss.item()}
    arrays |= {"critic/penalty": penalty.item()}
    arrays |= gradients(flow_loss, factors, "critic/flow") | gradients(adversarial, factors, "critic/gan")
    return arrays | gradients(adversarial, dict(discriminator.named_parameters()), "critic/heads")


def stored(name: str, value: np.ndarray, case: str) -> np.ndarray:
    """The array in fp32, or its norm, to keep the files small."""
    kernel = name.startswith("critic/heads") and value.ndim == 5
    inner = kernel and not name.endswith((".0.weight", ".5.weight"))
    large = kernel or name in ("dmd/fake", "dmd/cond", "dmd/uncond", "dmd/gradient")
    is_norm = inner or name == "critic/x" or (large and case != FULL)
    return np.float32(np.linalg.norm(value) if is_norm else value)


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    generator, score = transformer("generator", 5), transformer("score", 6)
    generator_factors, critic_factors = adapt(generator, "generator", PATCHERS), adapt(score, "critic", ())
    discriminator = Discriminator(score).double()
    for name, parameter in discriminator.named_parameters():
        parameter.data = torch.from_numpy(head_parameter(name, parameter.shape)).double()
    for case, exits in CASES.items():
        empty = case.startswith("empty")
        with double_precision():
            arrays = generator_update(generator, generator_factors, discriminator, exits, empty)
            arrays |= critic_update(generator, discriminator, critic_factors, exits, empty)
        arrays = {name: stored(name, np.asarray(value), case) for name, value in arrays.items()}
        np.savez_compressed(OUT / f"{case}.npz", **arrays)
        print(case, *(f"{name} {arrays[name]:.6f}" for name in arrays if name.endswith(("loss", "penalty"))))


if __name__ == "__main__":
    main()
