"""The model card of helios-tiny: what it is, how it was trained, and its scores, from the files of its run.

A run of ``train_tiny.py`` has a folder with config.json for each phase, and ``artefacts/`` with a scores.json for every
number of steps with which a student was sampled. What a run does not have, the card leaves out.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from helios_jax.checkpoints.settings import PipelineSettings, read_settings
from helios_jax.checkpoints.tensor_files import TensorFolder

PHASES = ("vae_images", "vae", "stage1", "stage2", "ode", "consistency", "dmd", "gan")
"""Folders of a run in the order of training."""

WORLDS = "0 and 1 for training, 9 for the captions of recorded trajectories"

HEAD = """---
license: apache-2.0
pipeline_tag: text-to-video
library_name: helios_jax
---

# helios-tiny

A small [Helios](https://arxiv.org/abs/2603.04379) for a procedural world: coloured shapes that move, leave and return
over textured backgrounds. It has every part of the large model and runs on a CPU; it knows nothing but these shapes.

```python
pipe = hx.HeliosPipeline.from_pretrained("helios-tiny", dtype="auto", vae_dtype="auto")
```
"""

SCORES = """Videos of three chunks from captions of held-out scenes. "Recovered" counts those in which colour, kind and
direction of every captioned shape can be read from the pixels. The last column is for the scenes themselves after a
pass through the VAE.
"""

_NAMES = {"transformer": "transformer", "vae": "VAE", "text_encoder": "text encoder"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """How far frames of the shipped weights differ from those of the product in float32, of 255.

    Attributes:
        dtype: What the shipped weights are computed in.
        first_chunk: Mean absolute difference over the first chunk.
        video: Over the whole video.
        frames: Its length.
    """

    dtype: str
    first_chunk: float
    video: float
    frames: int

    def __str__(self) -> str:
        return (
            f"bfloat16 weights computed in {self.dtype}: frames differ from those of the trained fp32 weights by "
            f"{self.first_chunk:.2f} of 255 on average in the first chunk, {self.video:.2f} over {self.frames} frames"
        )


def card(folder: Path, product: Path, difference: Difference, *, commit: str = "", hardware: str = "") -> str:
    """The text of the card.

    Args:
        folder: The shipped folder.
        product: The product it was made from, <run>/<phase>/product/<steps>.
        difference: Of its frames.
        commit: Commit that trained it.
        hardware: What trained it.
    """
    settings = read_settings(folder)
    defaults, run, phase = settings.defaults, product.absolute().parents[2], product.absolute().parents[1].name
    trained = [f"`python -m helios_jax.experiments.train_tiny --size=helios_tiny`, phase `{phase}`"]
    trained += [f"commit {commit}"] if commit else []
    trained += [hardware] if hardware else []
    facts = [
        ("parameters", _sizes(folder, settings)),
        ("size", f"{defaults.height} x {defaults.width} pixels, 24 frames per second"),
        ("prompts", f"captions of the world, up to {defaults.max_text_tokens} tokens; other words are unknown"),
        ("sampling", "2 or 1 steps per level, no guidance"),
        ("precision", str(difference)),
        ("training", "; ".join(trained)),
        ("seeds of the scenes", WORLDS),
    ]
    text = HEAD + "\n" + _table(("", ""), facts)
    if phases := list(_phases(run)):
        text += "\n## Training\n\n" + _table(("phase", "seed", "steps", "samples a step"), phases)
    if scores := list(_scores(run, phase)):
        head = ("steps", "world", "videos", "recovered", "through the VAE")
        text += f"\n## Scores\n\n{SCORES}\n" + _table(head, scores)
    return text


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _phases(run: Path) -> Iterator[tuple[Any, ...]]:
    for name in PHASES:
        file = run / name / "config.json"
        if file.is_file():
            config = json.loads(file.read_text())
            yield name, config["seed"], config["steps"], config["batch_size"]


def _scores(run: Path, phase: str) -> Iterator[tuple[Any, ...]]:
    for file in sorted((run / "artefacts").glob(f"{phase}-*/scores.json")):
        found = json.loads(file.read_text())
        settings = found["settings"]
        steps = ", ".join(map(str, settings["steps"]))
        yield steps, settings["world"], settings["videos"], found["sampled"]["recovered"], found["vae"]["recovered"]


def _sizes(folder: Path, settings: PipelineSettings) -> str:
    """Parameters of the networks, from the headers of their files."""
    counts = {}
    for name in settings.components:
        with TensorFolder(folder / name) as files:
            counts[name] = sum(math.prod(info.shape) for info in files.tensors.values())
    parts = ", ".join(f"{_NAMES[name]} {count / 1e6:.1f}M" for name, count in counts.items())
    return f"{sum(counts.values()) / 1e6:.1f}M in bfloat16: {parts}"
