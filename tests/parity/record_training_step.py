"""Records losses and LoRA gradients of one training step of stages 1 and 2, with PyTorch.

Run in an environment with ``torch==2.13.0 diffusers==0.42.1 transformers ftfy peft`` (CPU builds):

    python tests/parity/record_training_step.py

Writes ``tests/parity/data/training_step``: a small transformer as diffusers saves it; ``step.npz`` with the draws, the
losses and the gradient of every LoRA factor. Inputs, noise and LoRA factors are ``NamedDraws`` and not stored.

Both steps are written here from their description in arXiv 2603.04379 around diffusers' transformer and PEFT's LoRA
layers. Stage 2 is the packed form: one sequence per chunk with block-diagonal attention.
"""

import pathlib
import shutil

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import HeliosScheduler, HeliosTransformer3DModel
from diffusers.models.transformers.transformer_helios import center_down_sample_3d, pad_for_3d_conv
from named_draws import NamedDraws
from peft import LoraConfig
from record_transformer import randomize

OUT = pathlib.Path(__file__).parent / "data" / "training_step"

CONFIG = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "rope_dim": (4, 6, 6),
    "text_dim": 24,
    "freq_dim": 16,
    "ffn_dim": 48,
    "num_layers": 2,
    "in_channels": 4,
    "out_channels": 4,
}
BATCH, RANK, RATIOS = 4, 4, (1, 2, 1)
CHUNK, PAST = (9, 16, 24, 4), (19, 16, 24, 4)
INDICES = {"long": range(1, 17), "mid": (17, 18), "short": (0, 19)}
SEGMENTS = (1, 9, 2, 7)
DRAWS = NamedDraws(11)

# The four samples: a past of 9 frames; all of it, blurred; anchor and last frame; no context.
DECISIONS = {
    "drop/t2v": [0.9, 0.8, 0.7, 0.1],
    "drop/i2v": [0.9, 0.8, 0.05, 0.5],
    "drop/v2v": [0.2, 0.9, 0.5, 0.5],
    "drop/chunks": [0.5, 0.1, 0.7, 0.3],
    "corruption/clean": [0.5, 0.6, 0.7, 0.8],
    "corruption/mode": [0.3, 0.05, 0.4, 0.6],
}


def draw(name: str, *shape: int) -> torch.Tensor:
    """A channels-last named draw, channels first and in fp64."""
    return torch.from_numpy(DRAWS.normal(name, (BATCH, *shape))).double().moveaxis(-1, 1)


def context(decisions: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Tiers after dropping, noise or blur, and saturation, sample by sample."""
    history, anchors, noise = (
        draw("history", *PAST),
        draw("anchor", 1, *PAST[1:]),
        draw("corruption/noise", 20, *PAST[1:]),
    )
    clips = []
    for i in range(BATCH):
        d = {name: value[i] for name, value in decisions.items()}
        frames, anchor = history[i].clone(), anchors[i].clone()
        if d["drop/t2v"] < 0.4:
            frames[:], anchor[:] = 0, 0
        elif d["drop/i2v"] < 0.1:
            frames[:, :18] = 0
        elif d["drop/v2v"] < 0.4:
            frames[:, : 1 + 9 * int(3 * d["drop/chunks"])] = 0
        clip = torch.cat([anchor, frames], dim=1)
        first = 0
        for length in (1, *SEGMENTS):
            part = slice(first, first + length)
            if d["corruption/clean"] >= 0.1:
                clip[:, part] = corrupt(clip[:, part], d, noise[i, :, part], part)
            first += length
        first = 1
        for length in SEGMENTS:
            part = slice(first, first + length)
            clean, side, strength = (d[f"saturation/{name}"][first - 1] for name in ("clean", "side", "strength"))
            if clean >= 0.1:
                factor = 0.3 + 0.699 * strength if side < 0.5 else 1.001 + 0.699 * strength
                grey = clip[:, part].mean(0, keepdim=True)
                clip[:, part] = grey + factor * (clip[:, part] - grey)
            first += length
        clips.append(clip)
    clip = torch.stack(clips).float()
    return {"long": clip[:, :, 1:17], "mid": clip[:, :, 17:19], "short": clip[:, :, [0, 19]]}


def corrupt(x: torch.Tensor, d: dict[str, np.ndarray], noise: torch.Tensor, part: slice) -> torch.Tensor:
    """Blurs a segment [C,T,H,W] or adds noise to those of its frames that are not zero."""
    if d["corruption/mode"] < 0.1:
        scale = 0.9 + 0.1 * d["corruption/scale"][part.start]
        size = [round(float(scale * side)) for side in x.shape[2:]]
        options = {"mode": "bilinear", "align_corners": False, "antialias": True}
        return F.interpolate(F.interpolate(x, size=size, **options), size=x.shape[2:], **options)
    sigma = torch.from_numpy(d["corruption/sigma"][part] / 3)[None, :, None, None]
    present = (x != 0).any(0).any(-1).any(-1)[None, :, None, None]
    return torch.where(present, (1 - sigma) * x + sigma * noise, x)


def stage1(model: HeliosTransformer3DModel, tiers: dict[str, torch.Tensor], u: np.ndarray) -> torch.Tensor:
    """Flow matching at full resolution."""
    x, z = draw("target", *CHUNK), draw("noise", *CHUNK)
    sigma = torch.from_numpy((1000 - np.floor(1000 * u)) / 1000)
    mixed = (1 - sigma)[:, None, None, None, None] * x + sigma[:, None, None, None, None] * z
    history = {f"latents_history_{name}": tier for name, tier in tiers.items()}
    indices = {f"indices_latents_history_{name}": torch.tensor([list(i)] * BATCH) for name, i in INDICES.items()}
    v = model(
        hidden_states=mixed.float(),
        timestep=(1000 * sigma).float(),
        encoder_hidden_states=torch.from_numpy(DRAWS.normal("text", (BATCH, 5, CONFIG["text_dim"]))),
        indices_hidden_states=torch.arange(20, 29).repeat(BATCH, 1),
        **history,
        **indices,
        return_dict=False,
    )[0]
    return F.mse_loss(v, (z - x).float())


def stage2(model: HeliosTransformer3DModel, tiers: dict[str, torch.Tensor], u: np.ndarray) -> torch.Tensor:
    """Pyramid flow matching, the samples of each chunk packed into one sequence."""
    scheduler = HeliosScheduler()
    chunks, noises = [draw("target", *CHUNK)], [draw("noise", *CHUNK)]
    for _ in range(2):
        chunks.insert(0, per_frame(F.avg_pool2d, chunks[0], 2))
        noises.insert(0, 2 * per_frame(F.avg_pool2d, noises[0], 2))
    text = torch.from_numpy(DRAWS.normal("text", (BATCH, 5, CONFIG["text_dim"])))
    levels = [level for level, ratio in enumerate(RATIOS) for _ in range(ratio)]
    losses = []
    for i in range(BATCH):
        inputs, targets, timesteps = [], [], []
        for number, level in enumerate(levels):
            x, n = chunks[level][i], noises[level][i]
            start = n
            if level > 0:
                s = scheduler.start_sigmas[level]
                below = F.interpolate(chunks[level - 1][i], scale_factor=2, mode="nearest")
                start = s * n + (1 - s) * below
            e = scheduler.end_sigmas[level]
            end = e * n + (1 - e) * x
            j = int(1000 * u[i, number])
            sigma = scheduler.sigmas_per_stage[level][j]
            inputs.append((sigma * start + (1 - sigma) * end).float())
            targets.append((start - end).float())
            timesteps.append(scheduler.timesteps_per_stage[level][j].float())
        own = {name: tier[i : i + 1] for name, tier in tiers.items()}
        velocities = packed(model, inputs, timesteps, text[i : i + 1], own)
        if i == 0:  # packing is one forward pass per sample, nothing else
            for x, t, v in zip(inputs, timesteps, velocities, strict=True):
                alone = model(
                    hidden_states=x[None],
                    timestep=t[None],
                    encoder_hidden_states=text[:1],
                    indices_hidden_states=torch.arange(20, 29)[None],
                    **{f"latents_history_{name}": tier for name, tier in own.items()},
                    **{f"indices_latents_history_{name}": torch.tensor([list(k)]) for name, k in INDICES.items()},
                    return_dict=False,
                )[0]
                assert torch.allclose(alone[0], v, atol=1e-4), (alone[0] - v).abs().max()
        losses += [F.mse_loss(v, target) for v, target in zip(velocities, targets, strict=True)]
    return torch.stack(losses).mean()


def per_frame(function, x: torch.Tensor, *args) -> torch.Tensor:
    """Applies an image function to every frame of [B,C,T,H,W]."""
    return function(x.transpose(1, 2).flatten(0, 1), *args).unflatten(0, (len(x), -1)).transpose(1, 2)


def packed(
    model: HeliosTransformer3DModel,
    inputs: list[torch.Tensor],
    timesteps: list[torch.Tensor],
    text: torch.Tensor,
    tiers: dict[str, torch.Tensor],
) -> list[torch.Tensor]:
    """Velocities of several noisy chunks [C,T,H,W] of any size that share a context and a text."""
    height, width = (side // 2 for side in tiers["short"].shape[3:])
    history, history_rope = [], []
    for name, factor in (("long", 4), ("mid", 2), ("short", 1)):
        patcher = getattr(model, f"patch_{name}")
        rope = model.rope(torch.tensor([list(INDICES[name])]), height, width, "cpu")
        if factor > 1:
            rope = center_down_sample_3d(pad_for_3d_conv(rope, (factor,) * 3), (factor,) * 3)
        tier = pad_for_3d_conv(tiers[name], (factor, 2 * factor, 2 * factor))
        history.append(patcher(tier).flatten(2).transpose(1, 2))
        history_rope.append(rope.flatten(2).transpose(1, 2))
    history, history_rope = torch.cat(history, 1), torch.cat(history_rope, 1)

    tokens, ropes, embeddings, rows, owner, noisy = [], [], [], [], [], []
    embedder = model.condition_embedder
    clean_embedding, clean_rows, text = embedder(torch.zeros(1), text)
    for number, (x, t) in enumerate(zip(inputs, timesteps, strict=True)):
        patches = model.patch_embedding(x[None])
        now = patches.flatten(2).transpose(1, 2)
        rope = model.rope(torch.arange(20, 29)[None], *patches.shape[3:], "cpu").flatten(2).transpose(1, 2)
        embedding, own_rows, _ = embedder(t[None], text, is_return_encoder_hidden_states=False)
        tokens += [history, now]
        ropes += [history_rope, rope]
        for source, count, is_noisy in ((clean_embedding, history.shape[1], False), (embedding, now.shape[1], True)):
            embeddings.append(source[:, None].expand(-1, count, -1))
            rows.append((own_rows if is_noisy else clean_rows).unflatten(1, (6, -1))[:, None].expand(-1, count, -1, -1))
            owner.append(torch.full((count,), number))
            noisy.append(torch.full((count,), is_noisy))
    x, rope, embedding, rows = (torch.cat(parts, 1) for parts in (tokens, ropes, embeddings, rows))
    owner, noisy = torch.cat(owner), torch.cat(noisy)
    same = (owner[:, None] == owner)[None, None]
    for block in model.blocks:
        shift, scale, gate, shift2, scale2, gate2 = (block.scale_shift_table + rows).unbind(2)
        x = x + gate * block.attn1(block.norm1(x) * (1 + scale) + shift, None, same, rope)
        update = block.attn2(block.norm2(x[:, noisy]), text)
        x = x.clone()
        x[:, noisy] = x[:, noisy] + update
        x = x + gate2 * block.ffn(block.norm3(x) * (1 + scale2) + shift2)
    shift, scale = (model.norm_out.scale_shift_table + embedding[:, :, None]).unbind(2)
    out = model.proj_out(model.norm_out.norm(x) * (1 + scale) + shift)
    velocities = []
    for number, source in enumerate(inputs):
        channels, frames, height, width = source.shape
        patches = out[0, noisy & (owner == number)].unflatten(0, (frames, height // 2, width // 2))
        patches = patches.unflatten(-1, (2, 2, channels)).permute(5, 0, 1, 3, 2, 4)
        velocities.append(patches.reshape(channels, frames, height, width))
    return velocities


def main() -> None:
    torch.manual_seed(0)
    model = HeliosTransformer3DModel(**CONFIG)
    randomize(model, 5)
    shutil.rmtree(OUT, ignore_errors=True)
    model.save_pretrained(OUT / "transformer")
    layers = [name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "norm" not in name]
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=layers))
    trainable = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            name = name.replace(".default", "").removesuffix(".weight")
            scale = parameter.shape[1] ** -0.5
            parameter.data = torch.from_numpy(scale * DRAWS.normal(name, parameter.shape))
            trainable[name] = parameter
    assert [p.requires_grad for p in model.parameters()].count(True) == len(trainable) == 2 * len(layers)

    arrays = {name: np.asarray(values) for name, values in DECISIONS.items()}
    arrays |= {f"corruption/{name}": DRAWS.uniform(name, (BATCH, 20)) for name in ("sigma", "scale")}
    arrays |= {f"saturation/{name}": DRAWS.uniform(name, (BATCH, 19)) for name in ("clean", "side", "strength")}
    arrays = {name: value.astype(np.float32) for name, value in arrays.items()}
    tiers = context({name: value.astype(np.float64) for name, value in arrays.items()})
    for stage, step, shape in (("base", stage1, (BATCH,)), ("pyramid", stage2, (BATCH, sum(RATIOS)))):
        u = DRAWS.uniform(f"{stage}/u", shape)
        loss = step(model, tiers, u.astype(np.float64))
        model.zero_grad()
        loss.backward()
        arrays |= {f"{stage}/u": u, f"{stage}/loss": np.float32(loss.item())}
        arrays |= {f"{stage}/grad/{name}": parameter.grad.numpy() for name, parameter in trainable.items()}
        norms = sorted(float(parameter.grad.norm()) for parameter in trainable.values())
        print(stage, f"loss {loss.item():.6f}, {len(norms)} gradients with norms {norms[0]:.2e} to {norms[-1]:.2e}")
    np.savez_compressed(OUT / "step.npz", **arrays)


if __name__ == "__main__":
    main()
