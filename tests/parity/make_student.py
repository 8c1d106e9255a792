"""Trains the small student that ``record_student.py`` runs in diffusers: five steps of stage 3 on random latents.

Run in the environment of this project:

    python tests/parity/make_student.py student

Generator and scores start from the random weights of ``data/pipelines``; learning rates are so large that every layer
of the student differs from its start. Its product, in the published layout and fp32, is written to the folder.
"""

import dataclasses
import pathlib
import shutil
import sys
import tempfile

import numpy as np

from helios_jax.data.helios_latents.record import LatentRecord
from helios_jax.data.helios_latents.writer import LatentWriter
from helios_jax.experiments import stage3_distill
from helios_jax.training.experiment import Lora
from helios_jax.training.trainer import train

PIPELINES = pathlib.Path(__file__).parent / "data" / "pipelines"
SIZE, TEXT_DIM, TOKENS, STEPS = (8, 8), 24, 16, 5


def write_latents(folder: pathlib.Path) -> None:
    """Four clips of four chunks."""
    rng, records = np.random.default_rng(0), []
    for number in range(4):
        chunks = rng.standard_normal((4, 9, *SIZE, 16))
        embeds = rng.standard_normal((TOKENS, TEXT_DIM))
        clip = {"caption": "A fox.", "embeds": embeds, "fps": 24.0, "height": 64, "width": 64}
        records.append(LatentRecord(uid=f"clip{number}", latents=chunks, anchor=chunks[0, 0], **clip))
    writer = LatentWriter(folder, {SIZE: 1}, {})
    writer.write((SIZE, 0), records)
    assert writer.finish()


def main(out: pathlib.Path) -> int:
    """Trains and copies the product."""
    with tempfile.TemporaryDirectory() as temporary:
        work = pathlib.Path(temporary)
        shutil.copytree(PIPELINES / "checkpoint", work / "mid")
        shutil.copytree(PIPELINES / "mid", work / "mid", dirs_exist_ok=True)
        write_latents(work / "latents")
        published = stage3_distill.experiment("14b")
        start = dataclasses.replace(published.start, folder=str(work / "mid"), dtype="float32")
        optimizer = dataclasses.replace(published.optimizer, learning_rate=1e-2)
        lora = Lora(rank=4, excludes=("transformer/patch_embedding",))
        settings = dataclasses.replace(
            published,
            start=start,
            method=dataclasses.replace(
                published.method,
                score=start,
                critic_lora=lora,
                critic_optimizer=optimizer,
                text=str(work / "mid"),
                tokens=TOKENS,
                ratio=2,
            ),
            data=dataclasses.replace(published.data, folders=(str(work / "latents"),), tokens=TOKENS),
            product=dataclasses.replace(published.product, parts=str(work / "mid"), dtype="float32"),
            optimizer=optimizer,
            lora=lora,
            ema=None,
            steps=STEPS,
            batch_size=2,
            validation=None,
        )
        if status := train(settings, work / "run"):
            return status
        shutil.copytree(work / "run" / "product" / str(STEPS), out)
    print(*sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))
