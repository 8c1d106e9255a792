"""A product of stage 3 as a Distilled checkpoint: the same latents as in diffusers (tests/parity/record_student.py)."""

import pathlib
import shutil
import sys

import numpy as np
import pytest

from helios_jax import HeliosPipeline
from helios_jax.config import SchedulerConfig

PARITY = pathlib.Path(__file__).parents[1] / "parity"
STUDENT = PARITY / "data" / "student"
sys.path.insert(0, str(PARITY))

from named_draws import NamedDraws  # noqa: E402


@pytest.mark.filterwarnings("ignore:a prompt has")  # recorded with a limit that cuts the prompt
def test_diffusers_makes_the_same_latents_with_the_product(tmp_path):
    for part in ("text_encoder", "tokenizer", "vae"):
        (tmp_path / part).symlink_to(PARITY / "data" / "pipelines" / "checkpoint" / part)
    shutil.copytree(STUDENT / "checkpoint", tmp_path, dirs_exist_ok=True)
    pipe = HeliosPipeline.from_pretrained(tmp_path, dtype="float32", vae_dtype="float32")
    assert pipe.config.is_distilled
    assert pipe.scheduler == SchedulerConfig.distilled()
    out = pipe(
        "A red fox trots through fresh snow.",
        num_frames=66,
        height=64,
        width=64,
        steps=(2, 2, 2),
        amplify_first_chunk=True,
        max_text_tokens=16,
        noise=NamedDraws(50),
        progress=False,
    )
    recorded = np.load(STUDENT / "recorded.npz")
    error = np.linalg.norm(out.latents - recorded["latents"]) / np.linalg.norm(recorded["latents"])
    assert error <= 2e-3
    assert out.frames.shape[1] == recorded["num_frames"]
    assert np.abs(out.frames[:, ::12].astype(np.float32) - recorded["frames"]).mean() <= 1.0
