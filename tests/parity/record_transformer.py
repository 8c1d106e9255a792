"""Records small random transformers and their outputs with diffusers.

Run in an environment with ``torch==2.13.0 diffusers==0.42.1 transformers ftfy`` (CPU builds):

    python tests/parity/record_transformer.py

Writes ``tests/parity/data/transformer/<case>/``: the checkpoint as diffusers saves it, and ``case.npz`` with inputs
and outputs (channels first, as diffusers has them).
"""

import pathlib
import shutil

import numpy as np
import torch
from diffusers import HeliosTransformer3DModel

OUT = pathlib.Path(__file__).parent / "data" / "transformer"

SMALL = {"num_attention_heads": 2, "attention_head_dim": 16, "rope_dim": (4, 6, 6), "text_dim": 24, "freq_dim": 16}
CASES = {
    # name: (config, full latent size, current latent size)
    "published": ({**SMALL, "ffn_dim": 48, "num_layers": 3}, (16, 24), (8, 12)),
    # Sides that the coarse patches do not divide, three heads, another rotary split and base.
    "ragged": (
        {
            **SMALL,
            "num_attention_heads": 3,
            "attention_head_dim": 12,
            "rope_dim": (4, 4, 4),
            "rope_theta": 500.0,
            "ffn_dim": 40,
            "num_layers": 2,
            "in_channels": 4,
            "out_channels": 4,
        },
        (12, 20),
        (12, 20),
    ),
    "amplify": ({**SMALL, "ffn_dim": 32, "num_layers": 2, "is_amplify_history": True}, (8, 8), (4, 4)),
    "plain": (
        {
            **SMALL,
            "ffn_dim": 32,
            "num_layers": 2,
            "guidance_cross_attn": False,
            "zero_history_timestep": False,
            "cross_attn_norm": False,
            "is_amplify_history": True,
            "history_scale_mode": "scalar",
        },
        (8, 16),
        (8, 16),
    ),
}


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Draws every parameter, so that no norm weight is 1 and no bias is 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(parameter + 0.2 * noise)
            else:
                parameter.copy_(noise / max(1, parameter[0].numel()) ** 0.5)


def main() -> None:
    for seed, (name, (config, full, current)) in enumerate(CASES.items()):
        torch.manual_seed(seed)
        model = HeliosTransformer3DModel(**config).eval()
        randomize(model, seed)
        folder = OUT / name
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder / "transformer")
        generator = torch.Generator().manual_seed(100 + seed)
        channels = model.config.in_channels

        def draw(*shape: int, generator: torch.Generator = generator) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        inputs = {
            "hidden_states": draw(2, channels, 9, *current),
            "timestep": torch.tensor([998, 174]),
            "encoder_hidden_states": draw(2, 5, config["text_dim"]),
            "latents_history_short": draw(2, channels, 2, *full),
            "latents_history_mid": draw(2, channels, 2, *full),
            "latents_history_long": draw(2, channels, 16, *full),
        }
        indices = {
            "indices_hidden_states": torch.arange(20, 29)[None],
            "indices_latents_history_short": torch.tensor([[0, 19]]),
            "indices_latents_history_mid": torch.tensor([[17, 18]]),
            "indices_latents_history_long": torch.arange(1, 17)[None],
        }
        arrays = {key: value.numpy() for key, value in inputs.items()}
        with torch.no_grad():
            arrays["output"] = model(**inputs, **indices, return_dict=False)[0].numpy()
            if name == "published":
                alone = {key: inputs[key] for key in ("hidden_states", "timestep", "encoder_hidden_states")}
                arrays["output_without_history"] = model(**alone, return_dict=False)[0].numpy()
                model = HeliosTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.bfloat16)
                half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}
                arrays["output_bf16"] = model(**half, **indices, return_dict=False)[0].float().numpy()
        np.savez_compressed(folder / "case.npz", **arrays)
        print(name, f"output std {arrays['output'].std():.3f}")


if __name__ == "__main__":
    main()
