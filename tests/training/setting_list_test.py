"""The list of settings that ``helios-train --help_config`` prints."""

import dataclasses
import importlib
import re

import pytest

from helios_jax import train
from helios_jax.training.overrides import frozen
from helios_jax.training.setting_flags import leaves
from helios_jax.training.setting_list import attribute_documents, describe, values_of

EXPERIMENTS = [("stage1_init", "14b"), ("stage1_init", "tiny"), ("stage2_init", "tiny"), ("tiny_vae", "clips")]


@pytest.mark.parametrize(("name", "size"), EXPERIMENTS)
def test_every_setting_is_listed_and_documented(name, size):
    mirror = importlib.import_module(f"helios_jax.experiments.{name}").get_config(size)
    lines = list(describe(frozen(mirror)))
    undocumented = [
        line for line, after in zip(lines, [*lines[1:], ""], strict=True) if "config." in line and after[:4] != "    "
    ]
    assert undocumented == []
    titles = {match[1] for line in lines if (match := re.match(r"\n?(config[\w.]+)", line))}
    assert set(leaves(mirror)) <= titles
    assert {name for name, _ in values_of(frozen(mirror))} <= titles


def test_documents_of_attributes_are_read_whole():
    @dataclasses.dataclass
    class Settings:
        """A title.

        Attributes:
            one: The first, which
                goes on.
            two: The second: it has a colon.

        More text.
        """

        one: int = 1
        two: int = 2

    assert attribute_documents(Settings) == {"one": "The first, which goes on.", "two": "The second: it has a colon."}


def test_groups_that_are_none_show_what_they_would_have(capsys):
    assert train.main(["helios-train", "--config=stage1_init.py:tiny", "--help_config", "--config.steps=7"]) == 0
    output = capsys.readouterr().out
    assert "config.steps = 7  (int)\n    Steps to train for.\n" in output
    assert "config.lora = None; a Lora is added by setting any of these\n    Adapters to add; None: none.\n" in output
    assert "config.lora.rank  (int; must be set)\n    Rank r.\n" in output
    assert "config.ema.decay  (float; default 0.99)\n" in output
