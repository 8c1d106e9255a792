"""Records small random VAEs and what they encode and decode with diffusers.

Run in an environment with ``torch==2.13.0 diffusers==0.42.1 transformers ftfy`` (CPU builds):

    python tests/parity/record_vae.py

Writes ``tests/parity/data/vae/<case>/``: the checkpoint as diffusers saves it, and ``case.npz`` with inputs and outputs
(channels first, as diffusers has them; videos as bytes, standing for ``byte / 127.5 - 1``). Weights are rounded to
bf16 and stored so; the recorded runs are fp32 unless their name says bf16.
"""

import pathlib
import shutil

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock

OUT = pathlib.Path(__file__).parent / "data" / "vae"
CASES = {
    # name: (config, (height, width) of the latents)
    "wan": ({"base_dim": 4}, (2, 3)),
    # Three levels, time halved once, another width in the decoder, attention in the encoder's middle level.
    "other": (
        {
            "base_dim": 6,
            "decoder_base_dim": 4,
            "z_dim": 5,
            "dim_mult": [1, 3, 2],
            "num_res_blocks": 1,
            "attn_scales": [0.5],
            "temperal_downsample": [True, False],
            "latents_mean": [0.3, -0.2, 0.1, 0.0, -1.0],
            "latents_std": [1.5, 0.7, 2.0, 1.0, 0.4],
            "in_channels": 4,
            "out_channels": 2,
            "scale_factor_temporal": 2,
            "scale_factor_spatial": 4,
        },
        (5, 4),
    ),
}
VIDEOS = {1: 2, 30: 1, 33: 1}  # pixel frames: batch
LATENTS = {1: 2, 3: 1, 9: 1}  # latent frames: batch


class CachelessAttention(WanAttentionBlock):
    """diffusers 0.42.1 hands the caches to every encoder block, and its attention block refuses them."""

    def forward(self, x: torch.Tensor, feat_cache: object = None, feat_idx: object = None) -> torch.Tensor:
        return super().forward(x)


def randomize(model: AutoencoderKLWan, seed: int) -> None:
    """Draws every parameter, so that no gamma is 1, no bias is 0 and activations stay around 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("gamma"):
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            else:
                parameter.copy_(noise * (1.5 / parameter[0].numel()) ** 0.5)
        # Pixels mostly inside [-1, 1], so that clamping hides nothing; two log-variances beyond their limits.
        model.decoder.conv_out.weight *= 0.5
        model.quant_conv.bias[model.config.z_dim] = -30.0
        model.quant_conv.bias[model.config.z_dim + 1] = 20.0


def main() -> None:
    for seed, (name, (config, (height, width))) in enumerate(CASES.items()):
        model = AutoencoderKLWan(**config).eval()
        for block in model.encoder.down_blocks:
            if isinstance(block, WanAttentionBlock):
                block.__class__ = CachelessAttention
        randomize(model, seed)
        folder = OUT / name
        shutil.rmtree(folder, ignore_errors=True)
        model.to(torch.bfloat16).save_pretrained(folder / "vae")
        model.float()

        generator = torch.Generator().manual_seed(100 + seed)
        scale = 2 ** (len(model.config.dim_mult) - 1)
        arrays: dict[str, np.ndarray] = {}
        with torch.no_grad():
            for frames, batch in VIDEOS.items():
                shape = (batch, model.config.in_channels, frames, scale * height, scale * width)
                video = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
                posterior = model.encode(video.float() / 127.5 - 1).latent_dist
                arrays[f"video{frames}"] = video.numpy()
                arrays[f"mean{frames}"] = posterior.mean.numpy()
                arrays[f"logvar{frames}"] = posterior.logvar.numpy()
            for frames, batch in LATENTS.items():
                shape = (batch, model.config.z_dim, frames, height, width)
                latents = torch.randn(shape, generator=generator)
                arrays[f"latents{frames}"] = latents.numpy()
                arrays[f"decoded{frames}"] = model.decode(latents).sample.numpy()
            half = AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=torch.bfloat16)
            latents = torch.from_numpy(arrays["latents3"])
            arrays["decoded3_bf16"] = half.decode(latents.bfloat16()).sample.float().numpy()
        np.savez_compressed(folder / "case.npz", **arrays)
        decoded = arrays["decoded9"]
        print(
            f"{name}: {sum(p.numel() for p in model.parameters())} parameters, "
            f"mean std {arrays['mean33'].std():.2f}, logvar {arrays['logvar33'].min():.1f} to "
            f"{arrays['logvar33'].max():.1f}, pixel std {decoded.std():.2f}, "
            f"clamped {np.mean(np.abs(decoded) == 1):.1%}"
        )


if __name__ == "__main__":
    main()
