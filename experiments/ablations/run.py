"""Trains, samples and scores rows of the ablations; one JSON file for each row.

    python -m helios_jax.experiments.ablations.run --size=helios_tiny --row=baseline,no_anchor --out=runs/ablations
    python -m helios_jax.experiments.ablations.run --row=all --out=runs/ablations_cpu     # only that it works, on a CPU
    python -m helios_jax.experiments.ablations.compare runs/ablations/results

<out>/results/<row>.json has a value of every chunk of every video, and how they came about. After any interruption the
same command resumes: trainings from their checkpoints, sampling after the last whole batch of videos.

Rows can be made on different machines. What they need of each other are products, <out>/<row>/<phase>/product/<steps>;
copied to the same place in another <out>, they are used there. With --until=train only the trainings are run, and with
--until=<phase>, such as stage1, those up to this phase.

All rows have the same VAE (--parts), scenes, seeds and numbers of steps. See rows.py for the rows and docs/ablations.md
for their questions. Cost and result: no row has been run yet.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, logging

from helios_jax.arguments import Parser, path, whole
from helios_jax.experiments.ablations.costs import chunk_flops, training_minutes
from helios_jax.experiments.ablations.measure import (
    STYLE,
    TOKENS,
    Videos,
    chunk_milliseconds,
    measure,
    sample_settings,
    values_of,
)
from helios_jax.experiments.ablations.rows import ROWS, Row, rows_named
from helios_jax.experiments.ablations.training import (
    LATENT,
    needs_scenes,
    prepare_shared,
    steps_of,
    train_phase,
    train_row,
)
from helios_jax.experiments.train_tiny import DEFAULTS as RECIPES
from helios_jax.safe_files import read_object, replace_text
from helios_jax.version import __version__

if TYPE_CHECKING:
    from helios_jax.sampling.pipeline import HeliosPipeline

DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {"videos": 2, "chunks": 3, "batch_videos": 2, "distill_steps": 20, "clip_chunks": 3},
    "gpu": {"videos": 64, "chunks": 40, "batch_videos": 16, "distill_steps": 1500, "clip_chunks": 8},
    "helios_tiny": {
        "videos": 64,
        "chunks": 40,
        "batch_videos": 16,
        "scenes": 4096,
        "starts": 12288,
        "stage1_steps": 4500,
        "stage2_steps": 2000,
        "distill_steps": 1500,
    },
}
"""What differs from the recipe of train_tiny.py, by size: half of its steps and scenes, for all rows alike."""


def main(args: argparse.Namespace) -> int:
    """Runs the rows."""
    logging.set_verbosity(logging.WARNING)
    from helios_jax.compilation import use_compilation_caches

    use_compilation_caches()
    for row in args.row:
        start = time.perf_counter()
        print(f"# row {row.name}: {row.question}", flush=True)
        if needs_scenes(args, row):
            prepare_shared(args)
        phases = [phase.name for phase in row.phases]
        if args.until in phases:
            for phase in row.phases[: phases.index(args.until) + 1]:
                train_phase(args, phase)
        else:
            product = train_row(args, row)
            try:
                if args.until is None:
                    write_row(args, row, product)
            except (ValueError, OSError) as error:
                sys.exit(f"ablations.run: {error}")
        print(f"# row {row.name}: {time.perf_counter() - start:.1f} s", flush=True)
    return 0


def write_row(args: argparse.Namespace, row: Row, product: Path, processes: int | None = None) -> Path:
    """Samples and scores a row, and writes its file; videos and files that are there are kept.

    Raises:
        ValueError: The file, or the folder of videos, was made with other settings.
    """
    file = args.out / "results" / f"{row.name}.json"
    if file.exists():
        made_by, now = read_object(file, "remove it to measure the row again").get("command"), command_of(args, row)
        if made_by != now:
            raise ValueError(f"{file} was made by {made_by}, now it is {now}; choose another --out, or remove it")
        print(f"# {file} exists", flush=True)
        return file
    loaded: list[HeliosPipeline] = []

    def load() -> "HeliosPipeline":
        from helios_jax.sampling.pipeline import HeliosPipeline

        if not loaded:
            loaded.append(HeliosPipeline.from_pretrained(product, dtype="auto", vae_dtype="auto"))
        return loaded[0]

    videos = Videos(count=args.videos, chunks=args.chunks, batch=args.batch_videos, world=args.world, seed=args.seed)
    sampling = {"steps": row.steps, "guidance": row.guidance}
    records = measure(
        product,
        args.out / row.name / "videos",
        videos,
        **sampling,
        load=load,
        processes=processes,
        on_progress=_progress(),
    )
    pipe = load()
    settings = sample_settings(row.steps, row.guidance)
    trained = {phase.run: training_minutes(args.out / phase.run) for phase in row.phases}
    sampled = [record.get("seconds") for record in records]
    found = {
        "row": row.name,
        "against": row.against,
        "command": command_of(args, row),
        "helios_jax": __version__,
        "commit": args.commit or commit(),
        "card": card(),
        "size": args.size,
        "steps": list(row.steps),
        "guidance": row.guidance,
        "training_steps": {phase.run: steps_of(args, phase.run) for phase in row.phases},
        "training_minutes": trained,
        "sampling_minutes": round(sum(one for one in sampled if one is not None) / 60, 2),
        "gflop_per_chunk": round(
            1e-9
            * chunk_flops(
                pipe.transformer.config,
                pipe.scheduler,
                pipe.config.history,
                LATENT,
                steps=row.steps,
                text=TOKENS,
                guided=row.guidance > 1,
            ),
            2,
        ),
        "ms_per_chunk": round(chunk_milliseconds(pipe, settings), 2),
        "seed": args.seed,
        "settings": {name: getattr(args, name) for name in settings_of(args.size)},
        "scenes": list(range(args.videos)),
        "chunks": args.chunks,
        "values": values_of(records),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, row_text(found))
    print(f"# wrote {file}", flush=True)
    return file


def row_text(found: dict[str, Any]) -> str:
    """The text of a row's file: indented, with one line for each video."""
    head = json.dumps({name: value for name, value in found.items() if name != "values"}, indent=1)
    blocks = [
        f'  "{name}": [\n' + ",\n".join(f"   {json.dumps(video)}" for video in matrix) + "\n  ]"
        for name, matrix in found["values"].items()
    ]
    return f'{head[:-2]},\n "values": {{\n' + ",\n".join(blocks) + "\n }\n}\n"


def command_of(args: argparse.Namespace, row: Row) -> str:
    """The command line that makes a row again."""
    given = {"row": row.name, "size": args.size} | {
        name: getattr(args, name) for name, value in settings_of(args.size).items() if getattr(args, name) != value
    }
    flags = [f"--{name}={value}" for name, value in given.items()]
    return shlex.join(["python", "-m", "helios_jax.experiments.ablations.run", *flags])


def commit() -> str:
    """The commit of the working tree; empty outside of one."""
    git = ["git", "-C", os.fspath(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def card() -> str:
    """The device that sampled."""
    import jax

    return jax.devices()[0].device_kind


def _progress() -> Callable[[str, int, int], None]:
    """Prints how many videos are measured whenever that changes; it is called after every chunk."""
    printed: set[int] = set()

    def tell(part: str, done: int, total: int) -> None:
        if done not in printed:
            print(f"# {part}: {done} of {total} videos are measured", flush=True)
            printed.add(done)

    return tell


def settings_of(size: str) -> dict[str, Any]:
    """Every setting of a size that has a default there."""
    world = {"world": Videos().world, "seed": Videos().seed, "batch": 0}
    recipe = {name: value for name, value in RECIPES[size].items() if name in _HELP}
    return world | recipe | DEFAULTS[size]


_HELP = {
    "videos": "videos of each row",
    "chunks": "chunks of each video",
    "batch_videos": "videos sampled at a time",
    "stage1_steps": "steps of stage 1",
    "stage2_steps": "steps of stage 2; the row full_resolution has as many as cost the same",
    "ode_steps": "steps of the student from recordings",
    "consistency_steps": "steps of the student by consistency",
    "distill_steps": "steps of distribution matching",
    "image_steps": "steps of the VAE on images",
    "clip_steps": "steps of the VAE on clips",
    "scenes": "scenes to encode as whole videos",
    "starts": "further scenes, of which the first chunk is encoded",
    "clip_chunks": "chunks of a whole video in training",
    "encode_batch": "chunks that are encoded at a time",
    "trajectories": "captions of which trajectories are recorded",
}
"""Settings that have a default for each size."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line. Exits with code 2 and one line if it cannot be read."""
    parser = Parser(prog="ablations.run", description=__doc__)

    def add(name: str, help: str, **options: Any) -> None:
        parser.add_argument(f"--{name}", help=help, **options)

    add("row", f"rows, separated by commas, or all: {', '.join(ROWS)}", required=True)
    add("out", "folder to write (default runs/ablations)", type=path("--out"), default=Path("runs/ablations"))
    add("size", "what it runs on (default cpu)", choices=list(DEFAULTS), default="cpu")
    add("until", "train: no sampling; or the last phase to train, such as stage1")
    add("parts", "checkpoint with a VAE and a tokenizer to use instead of training the VAE", type=path("--parts"))
    add("commit", "commit for the files (default: that of the working tree)", default="")
    for name in _HELP:
        add(name, f"{_HELP[name]} (default: by size)", type=whole(f"--{name}", at_least=1))
    for name, help in (
        ("world", "seed of the scenes that are continued (default 4000)"),
        ("seed", "seed of the noise in sampling (default 0)"),
        ("batch", "samples per step of every training (default 0: those of the experiment)"),
    ):
        add(name, help, type=whole(f"--{name}", at_least=0))
    args = parser.parse_args(argv[1:])
    try:
        args.row = rows_named(args.row)
    except ValueError as error:
        parser.error(str(error))
    phases = {phase.name for row in args.row for phase in row.phases}
    if args.until not in (None, "train", *phases):
        parser.error(f"--until={args.until}; these rows have the phases {', '.join(sorted(phases))}, and train")
    if args.parts is not None and not (args.parts / "vae").is_dir():
        parser.error(f"--parts={args.parts} has no vae/; give a checkpoint such as <run>/parts")
    args.style, args.num_shapes = STYLE, 0
    for name, value in settings_of(args.size).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


if __name__ == "__main__":
    sys.exit(app.run(main, flags_parser=parse))
