"""Statistics of folders of videos: drift over chunks, high frequencies, motion, and the distance from other videos.

    python -m helios_jax.evaluation.videos runs/a/videos runs/b/videos --reference=data/videos --out=statistics.json

Every folder's mp4 files, also those in folders below it, are read and described by the mean of each statistic of
``evaluation.statistics`` for every chunk, its drift (last chunk less first chunk), and, with a reference, the Fréchet
distance of ``evaluation.frechet`` from it. Videos of moving shapes (``--shapes``) are also described by how far their
shapes move from frame to frame. All videos need the same number of chunks and the same size.
"""

import argparse
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app

from helios_jax.arguments import Parser, path, whole
from helios_jax.config import HistoryConfig, VaeConfig
from helios_jax.data.moving_shapes.styles import Style
from helios_jax.data.workers import ahead_of_time
from helios_jax.evaluation.frechet import features, video_distance
from helios_jax.evaluation.shape_motion import displacement
from helios_jax.evaluation.statistics import STATISTICS, PerChunk, chunk_statistics, drift, mean_statistics
from helios_jax.media.decoding import read_frames
from helios_jax.safe_files import replace_text
from helios_jax.typing import Float, UInt8

CHUNK = VaeConfig().pixel_frames(HistoryConfig().chunk_frames)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """What one video shows.

    Attributes:
        statistics: From ``chunk_statistics``.
        features: From ``frechet.features``.
        displacement: Of shapes; NaN if it was not asked for or there are none.
    """

    statistics: PerChunk
    features: Float[np.ndarray, " 41"]
    displacement: float


def measure(
    frames: UInt8[np.ndarray, "F H W 3"], chunk_frames: int = CHUNK, *, shapes: bool = False, style: Style = "plain"
) -> Measured:
    """Measures one video; ``shapes``: it shows moving shapes of that style."""
    return Measured(
        statistics=chunk_statistics(frames, chunk_frames),
        features=features(frames),
        displacement=displacement(frames, style) if shapes else float("nan"),
    )


def measure_file(file: Path, chunk_frames: int = CHUNK, *, shapes: bool = False) -> Measured:
    """Measures the video in a file."""
    return measure(np.stack(list(read_frames(file))), chunk_frames, shapes=shapes)


def describe(videos: Sequence[Measured], reference: Sequence[Measured] = ()) -> dict[str, Any]:
    """Describes a set of videos in numbers that JSON can hold; ``None`` stands for what is not known.

    Args:
        videos: The videos.
        reference: Videos to compute the Fréchet distance from.

    Raises:
        ValueError: There is no video, or their numbers of chunks differ.
    """
    counts = {len(video.statistics["brightness"]) for video in videos}
    if len(counts) != 1:
        raise ValueError(f"need videos with the same number of chunks, got numbers {sorted(counts)}")
    means = mean_statistics([video.statistics for video in videos])
    moves = [video.displacement for video in videos if not np.isnan(video.displacement)]
    result: dict[str, Any] = {
        "videos": len(videos),
        "chunks": {name: [_known(value) for value in means[name]] for name in STATISTICS},
        "drift": {name: _known(drift(means[name])) for name in STATISTICS},
        "displacement": _known(float(np.mean(moves))) if moves else None,
    }
    if len(reference) > 1 and len(videos) > 1:
        sets = [np.stack([video.features for video in group]) for group in (videos, reference)]
        result["frechet"] = _known(video_distance(*sets))
    return result


def halves(reference: Sequence[Measured]) -> float | None:
    """The Fréchet distance of a set's videos with even numbers from the others: what no other set can be below."""
    if len(reference) < 4:
        return None
    rows = np.stack([video.features for video in reference])
    return _known(video_distance(rows[::2], rows[1::2]))


def _known(value: float) -> float | None:
    return float(f"{value:.5g}") if np.isfinite(value) else None


def main(args: argparse.Namespace) -> int:
    """Measures the folders, prints their descriptions and writes them."""
    workers = args.processes
    one = functools.partial(measure_file, chunk_frames=args.chunk_frames, shapes=args.shapes)

    def measured(folder: Path) -> list[Measured]:
        files = sorted(folder.rglob("*.mp4"))
        if not files:
            raise ValueError(f"there is no mp4 file in {folder}")
        found: Iterable[Measured] = ahead_of_time(one, files, workers, processes=workers > 1)
        return list(found)

    reference = measured(args.reference) if args.reference else []
    result = dict(_descriptions(args.folders, measured, reference))
    if reference:
        result["reference"] = describe(reference) | {"frechet_of_halves": halves(reference)}
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        replace_text(args.out, text + "\n")
    return 0


def _descriptions(folders: Sequence[Path], measured: Any, reference: Sequence[Measured]) -> Iterator[tuple[str, Any]]:
    for folder in folders:
        yield str(folder), describe(measured(folder), reference)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="helios_jax.evaluation.videos", description=__doc__)
    parser.add_argument("folders", type=path("folders"), nargs="+", help="folders of mp4 files")
    parser.add_argument("--reference", type=path("--reference"), help="folder of videos to compare with")
    parser.add_argument("--out", type=path("--out"), help="JSON file to write")
    parser.add_argument("--chunk_frames", type=whole("--chunk_frames", at_least=1), default=CHUNK)
    parser.add_argument("--shapes", action="store_true", help="the videos show moving shapes: measure how they move")
    parser.add_argument("--processes", type=whole("--processes", at_least=1), default=os.cpu_count() or 1)
    return parser.parse_args(argv[1:])


if __name__ == "__main__":
    sys.exit(app.run(main, flags_parser=_parse))
