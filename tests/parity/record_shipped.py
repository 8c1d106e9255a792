"""Runs the checkpoint that comes with the package in diffusers, and records its latents and frames.

Run in the environment of ``record_pipelines.py``, after ``python -m helios_jax.experiments.ship_tiny``:

    python tests/parity/record_shipped.py helios_jax/weights/helios-tiny
    python tests/parity/record_shipped.py random --name=random         # after make_random_tiny.py random

Writes ``data/shipped/<name>.npz`` and ``.json``. The weights are stored in bfloat16 and computed in float32 on both
sides. Draws are named, as in ``record_pipelines.py``.
"""

import argparse
import json
import pathlib

import numpy as np
import record_pipelines
import torch
from diffusers import HeliosPyramidPipeline

OUT = record_pipelines.HERE / "data" / "shipped"
SEED = 60
CASE = "shipped_t2v"
PROMPT = (
    "A large red circle glides to the right slowly, and a medium blue star moves steadily up. At the edges they bounce "
    "back; the earlier named are in front of the later. The background is plain cream. The light is bright."
)


def main(folder: pathlib.Path, name: str) -> None:
    defaults = json.loads((folder / "sampling.json").read_text())
    arguments = {
        "prompt": PROMPT,
        "num_frames": 66,
        "pyramid_num_inference_steps_list": [2, 2, 2],
        "is_amplify_first_chunk": True,
        "max_sequence_length": defaults["max_text_tokens"],
    }
    record_pipelines.CASES[CASE] = ("distilled", (defaults["height"], defaults["width"]), arguments)
    pipe = HeliosPyramidPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    latents = np.moveaxis(record_pipelines.run(pipe, CASE, SEED, "latent"), 1, -1)
    frames = record_pipelines.run(pipe, CASE, SEED, "np")
    OUT.mkdir(exist_ok=True)
    np.savez_compressed(
        OUT / f"{name}.npz",
        latents=latents,
        frames=np.round(frames[:, record_pipelines.KEPT_FRAMES] * 255).astype(np.uint8),
        num_frames=frames.shape[1],
    )
    (OUT / f"{name}.json").write_text(json.dumps({"seed": SEED, "prompt": PROMPT}, indent=1) + "\n")
    print(f"latents {latents.shape} std {latents.std():.2f}, frames {frames.shape} std {frames.std():.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--name", default="helios-tiny")
    args = parser.parse_args()
    main(args.folder, args.name)
