"""Damaged checkpoints: ``helios-sample`` refuses them in a few lines, or makes the same video as without the damage."""

import pathlib
import shutil

import damage
import pytest
from verdict import verdict, video_digest

from helios_jax.checkpoints.random import write_random_checkpoint

pytestmark = pytest.mark.slow

SAMPLE = ("--prompt=a", "--height=64", "--width=64", "--steps=1,1,1", "--num_frames=33", "--max_text_tokens=16")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> pathlib.Path:
    """A checkpoint without damage."""
    folder = tmp_path_factory.mktemp("base") / "checkpoint"
    write_random_checkpoint(folder)
    (folder / "tokenizer" / "tokenizer_config.json").write_text('{"pad_token": "<pad>", "eos_token": "</s>"}')
    return folder


@pytest.fixture(scope="module")
def reference(base) -> str:
    """Digest of the video that it makes."""
    out = base.parent / "reference.mp4"
    assert verdict([*SAMPLE, f"--model={base}", f"--out={out}"], limit=300).code == 0
    return video_digest(out)


def faults(base: pathlib.Path, reference: str, family: damage.Family) -> dict[str, str]:
    """Runs the command on each damaged checkpoint; the name and the fault of those where it does not end well.

    Args:
        base: The checkpoint that is damaged.
        reference: See ``verdict``.
        family: The ways to damage it.
    """
    found = {}
    count = 0
    for name, spoil in family:
        count += 1
        folder = base.parent / f"case{count}"
        out = base.parent / f"case{count}.mp4"
        shutil.copytree(base, folder)
        spoil(folder)
        result = verdict([*SAMPLE, f"--model={folder}", f"--out={out}"], reference)
        if result.fault is not None:
            found[name] = result.fault
        # Values that are not finite are found in the result; the message names the network.
        elif result.code != 0 and not any(
            part in result.message for part in (str(folder), "transformer", "text encod")
        ):
            found[name] = f"neither file nor network is named: {result.message}"
        shutil.rmtree(folder)
        out.unlink(missing_ok=True)
    assert count >= MINIMUM[family.__name__], f"only {count} cases"
    return found


MINIMUM = {
    "junk_values": 80,
    "false_claims": 80,
    "broken_json": 50,
    "missing_parts": 25,
    "broken_weights": 50,
    "wrong_tensors": 40,
    "broken_index": 25,
    "broken_tokenizer": 25,
}
"""Cases of each family, more than 300 in all."""


def test_junk_values(base, reference):
    assert faults(base, reference, damage.junk_values(base, 1, 120)) == {}


def test_false_claims(base, reference):
    assert faults(base, reference, damage.false_claims(base)) == {}


def test_broken_json(base, reference):
    assert faults(base, reference, damage.broken_json(2)) == {}


def test_missing_parts(base, reference):
    assert faults(base, reference, damage.missing_parts()) == {}


def test_broken_weights(base, reference):
    assert faults(base, reference, damage.broken_weights(3, 60)) == {}


def test_wrong_tensors(base, reference):
    assert faults(base, reference, damage.wrong_tensors(4, 50)) == {}


def test_broken_index(base, reference, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(base, folder)
    damage.shard(folder)
    assert faults(folder, reference, damage.broken_index(5)) == {}


def test_broken_tokenizer(base, reference):
    assert faults(base, reference, damage.broken_tokenizer(6)) == {}
