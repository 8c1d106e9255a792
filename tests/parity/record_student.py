"""Runs a student of our stage 3, loaded from its product, in diffusers, and records its latents and frames.

Run in the environment of ``record_pipelines.py``, after ``make_student.py``:

    python tests/parity/record_student.py student

Writes ``data/student/``: what the product adds to the weights of ``data/pipelines`` (its transformer, index and
scheduler), and ``recorded.npz``. Draws are named, as in ``record_pipelines.py``.
"""

import pathlib
import shutil
import sys

import numpy as np
import record_pipelines
import torch
from diffusers import HeliosPyramidPipeline

OUT = record_pipelines.HERE / "data" / "student"
SEED = 50
ADDED = ("model_index.json", "scheduler", "transformer")
CASE = "student_t2v"
ARGUMENTS = {"num_frames": 66, "pyramid_num_inference_steps_list": [2, 2, 2], "is_amplify_first_chunk": True}


def main(product: pathlib.Path) -> None:
    record_pipelines.CASES[CASE] = ("distilled", (64, 64), ARGUMENTS)
    pipe = HeliosPyramidPipeline.from_pretrained(product, torch_dtype=torch.float32)
    latents = np.moveaxis(record_pipelines.run(pipe, CASE, SEED, "latent"), 1, -1)
    frames = record_pipelines.run(pipe, CASE, SEED, "np")
    shutil.rmtree(OUT, ignore_errors=True)
    for name in ADDED:
        source, target = product / name, OUT / "checkpoint" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    np.savez_compressed(
        OUT / "recorded.npz",
        latents=latents,
        frames=np.round(frames[:, record_pipelines.KEPT_FRAMES] * 255).astype(np.uint8),
        num_frames=frames.shape[1],
    )
    print(f"latents {latents.shape} std {latents.std():.2f}, frames {frames.shape} std {frames.std():.3f}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
