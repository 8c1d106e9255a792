"""Records a small Wan2.1 transformer and its output.

Run in an environment with ``torch==2.13.0 diffusers==0.42.1`` (CPU builds):

    python tests/parity/record_wan.py

Writes ``tests/parity/data/wan``: ``transformer/`` as diffusers saves it, and ``case.npz`` with inputs and the output.
"""

import pathlib
import shutil

import numpy as np
import torch
from diffusers import WanTransformer3DModel

OUT = pathlib.Path(__file__).parent / "data" / "wan"


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, text_dim=8, freq_dim=16, ffn_dim=48, num_layers=2
    ).eval()
    with torch.no_grad():  # biases and norms that matter
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(OUT / "transformer")
    inputs = {
        "hidden_states": torch.randn(2, 16, 3, 4, 6),
        "timestep": torch.tensor([700.0, 31.0]),
        "encoder_hidden_states": torch.randn(2, 5, 8),
    }
    with torch.no_grad():
        output = model(**inputs, return_dict=False)[0]
    np.savez_compressed(OUT / "case.npz", output=output.numpy(), **{key: x.numpy() for key, x in inputs.items()})
    print(output.shape, sum(parameter.numel() for parameter in model.parameters()))


if __name__ == "__main__":
    main()
