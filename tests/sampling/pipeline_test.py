"""Whole pipelines against diffusers (tests/parity/record_pipelines.py), all draws replayed."""

import json
import pathlib
import sys

import numpy as np
import pytest

PARITY = pathlib.Path(__file__).parents[1] / "parity"
DATA = PARITY / "data" / "pipelines"
sys.path.insert(0, str(PARITY))

from named_draws import NamedDraws  # noqa: E402

CASES = sorted(path.stem for path in DATA.glob("*.npz"))
FAST = ("base_t2v", "distilled_i2v")
"""Those of the fast tier; the slow one adds the other kinds and tasks."""

PROMPT = "A red fox trots through fresh snow."
NEGATIVE = "blurry, static"


def pixels(name: str, frames: int, height: int, width: int) -> np.ndarray:
    """The clip of the recording script, [F,H,W,3] in [0, 1]."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    phase = len(name)
    waves = [np.sin(0.3 * t + (c + 1) * 0.05 * x + phase) * np.cos(0.07 * y - 0.1 * c * t) for c in range(3)]
    return (0.5 + 0.5 * np.stack(waves, -1)).astype(np.float32)


def arguments_of(case: str, recorded: dict) -> dict:
    """The recorded call as arguments of this library."""
    theirs = recorded["arguments"]
    height, width = recorded["size"]
    task = case.split("_")[1]
    return {
        "prompt": theirs.get("prompt", PROMPT),
        "negative_prompt": None if recorded["kind"] == "distilled" else NEGATIVE,
        "image": pixels(case, 1, height, width)[0] if task == "i2v" else None,
        "video": pixels(case, recorded["clip_frames"], height, width) if task == "v2v" else None,
        "num_frames": theirs["num_frames"],
        "height": height,
        "width": width,
        "steps": theirs.get("pyramid_num_inference_steps_list") or theirs["num_inference_steps"],
        "amplify_first_chunk": theirs.get("is_amplify_first_chunk", False),
        "skip_first_chunk": theirs.get("is_skip_first_chunk", False),
        "max_text_tokens": 16,
        "noise": NamedDraws(recorded["seed"]),
        "progress": False,
    }


@pytest.mark.parametrize("case", [pytest.param(case, marks=[] if case in FAST else pytest.mark.slow) for case in CASES])
@pytest.mark.filterwarnings("ignore:a prompt has")  # recorded with a limit that cuts the prompt
def test_pipeline_matches_diffusers(case, pipelines):
    recorded = json.loads((DATA / f"{case}.json").read_text())
    expected = np.load(DATA / f"{case}.npz")
    out = pipelines(recorded["kind"])(**arguments_of(case, recorded))

    error = np.linalg.norm(out.latents - expected["latents"]) / np.linalg.norm(expected["latents"])
    assert error <= 2e-3
    assert out.frames.shape[1] == expected["num_frames"]
    kept = out.frames[:, ::12].astype(np.float32)
    assert np.abs(kept - expected["frames"]).mean() <= 1.0
