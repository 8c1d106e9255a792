"""Records what PyTorch's AdamW, gradient clipping and linear warm-up do to a small problem.

Run in an environment with ``torch==2.13.0`` (CPU build):

    python tests/parity/record_adamw.py

Writes ``tests/parity/data/adamw/updates.npz``: the gradients of 12 updates of two parameters and the values of the
parameters after each, for two settings.
"""

import pathlib

import numpy as np
import torch

OUT = pathlib.Path(__file__).parent / "data" / "adamw"
SHAPES = {"a/kernel": (3, 4), "b/bias": (4,)}
STEPS = 12

SETTINGS = {
    # name: (learning rate, betas, weight decay, clip, warm-up steps)
    "stage1": (5e-5, (0.9, 0.999), 1e-4, 1.0, 0),
    "large": (3e-2, (0.0, 0.999), 1e-1, 0.5, 5),
}


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    arrays = {}
    start = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    # Some gradients are above the limit of the norm, some below.
    gradients = [
        {name: torch.randn(shape, generator=generator) * 3.0 ** (step % 3 - 1.5) for name, shape in SHAPES.items()}
        for step in range(STEPS)
    ]
    for name in SHAPES:
        arrays[f"start/{name}"] = start[name].numpy().copy()
        arrays[f"gradients/{name}"] = torch.stack([step[name] for step in gradients]).numpy()
    for setting, (rate, betas, decay, clip, warmup) in SETTINGS.items():
        parameters = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
        optimizer = torch.optim.AdamW(parameters.values(), lr=rate, betas=betas, eps=1e-8, weight_decay=decay)
        factors = [min(1.0, step / warmup) if warmup else 1.0 for step in range(STEPS + 1)]
        ramp = torch.optim.lr_scheduler.LambdaLR(optimizer, factors.__getitem__)
        trace = {name: [] for name in SHAPES}
        for step in gradients:
            for name, parameter in parameters.items():
                parameter.grad = step[name].clone()
            torch.nn.utils.clip_grad_norm_(parameters.values(), clip)
            optimizer.step()
            ramp.step()
            for name, parameter in parameters.items():
                trace[name].append(parameter.detach().numpy().copy())
        arrays |= {f"{setting}/{name}": np.stack(values) for name, values in trace.items()}
    OUT.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(OUT / "updates.npz", **arrays)
    print({name: value.shape for name, value in arrays.items()})


if __name__ == "__main__":
    main()
