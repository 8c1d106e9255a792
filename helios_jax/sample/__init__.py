"""The command ``helios-sample``: video from text, from an image, or continuing a clip; see ``helios-sample --help``.

flags      the arguments
jobs       the videos to make
outputs    the files of a video: their names, and whether they may be written
check      checks before weights are loaded
records    how a video was made, as JSON
claims     locks: only one process makes a video
live       prompts typed while a video is made
command    the work itself
"""

from helios_jax.sample.command import main, run
from helios_jax.sample.flags import parse

__all__ = ["main", "parse", "run"]
