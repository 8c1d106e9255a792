"""``helios-train``: runs an experiment, or goes on with it.

    helios-train --config=experiments/stage1_init.py:14b --workdir=runs/stage1_init
    helios-train --config=experiments/stage1_init.py:14b --workdir=runs/fast --config.optimizer.learning_rate=1e-4

An experiment file has a function get_config(size). Every setting can be changed by --config.<name>=<value>; names that
do not exist and values of another type are refused. WORKDIR gets config.json, checkpoints/, metrics.jsonl,
tensorboard/, validation/<step>/ and, at the end, product/<step>/: a checkpoint that sampling and later stages read.

Give the same command again to go on after any interruption. After a SIGTERM the state is saved and the exit code is 75.

Several hosts: run the same command on each. --distributed finds the others on clusters that JAX knows (Slurm, Open MPI,
cloud TPUs, Kubernetes); elsewhere add --coordinator=HOST:PORT --num_processes=N --process_id=I.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags

from helios_jax.cli import run_command

if TYPE_CHECKING:
    from helios_jax.training.experiment import Experiment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The command line.

    Attributes:
        experiment: What to do.
        workdir: Folder of the run.
        distributed: Whether there are other processes.
        cluster: Arguments of ``jax.distributed.initialize``.
        cache: Folder for compiled programs.
    """

    experiment: "Experiment"
    workdir: Path
    distributed: bool
    cluster: dict[str, Any]
    cache: str | None


def parse(argv: Sequence[str]) -> Arguments:
    """Reads the command line; ``argv[0]`` is the program.

    Raises:
        ValueError: Anything wrong with it.
    """
    from ml_collections import config_flags

    from helios_jax.training.overrides import frozen

    argv, values = list(argv), flags.FlagValues()
    into = {"flag_values": values}
    config_flags.DEFINE_config_file("config", None, "experiment file:size", lock_config=False, sys_argv=argv, **into)
    flags.DEFINE_string("workdir", None, "folder of the run", **into)
    flags.DEFINE_boolean("distributed", False, "there are processes on other hosts", **into)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of the first process", **into)
    flags.DEFINE_integer("num_processes", None, "number of processes", **into)
    flags.DEFINE_integer("process_id", None, "number of this process, from 0", **into)
    flags.DEFINE_string("cache", None, "folder for compiled programs (default: in the user's cache folder)", **into)
    flags.DEFINE_boolean("help", False, "show this text", **into)
    try:
        rest = values(argv)[1:]
    except (flags.Error, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        # What an experiment file raises comes with its traceback as text.
        raise ValueError(str(error.args[0] if error.args else error).strip().splitlines()[-1]) from error
    if values.help:
        print(__doc__, values.get_help(), sep="\n")
        sys.exit(0)
    if rest:
        raise ValueError(f"what is {' '.join(rest)}? Settings are changed by --config.<name>=<value>")
    mirror: Any = values.config
    if mirror is None or values.workdir is None:
        raise ValueError("give --config, an experiment file such as experiments/stage1_init.py:14b, and --workdir")
    if not dataclasses.is_dataclass(mirror):  # config_flags puts an object that only raises in place of no file
        raise FileNotFoundError(
            f"no experiment file {config_flags.get_config_filename(values['config']).partition(':')[0]}"
        )
    cluster = {
        "coordinator_address": values.coordinator,
        "num_processes": values.num_processes,
        "process_id": values.process_id,
    }
    given = {name: value for name, value in cluster.items() if value is not None}
    return Arguments(
        experiment=frozen(mirror),
        workdir=Path(values.workdir),
        distributed=values.distributed or bool(given),
        cluster=given,
        cache=values.cache,
    )


def main(argv: Sequence[str]) -> int:
    """Trains; returns the exit code."""

    def work() -> int:
        arguments = parse(argv)
        import jax

        from helios_jax.compilation import use_compilation_caches
        from helios_jax.training.trainer import train

        if arguments.distributed:
            jax.distributed.initialize(**arguments.cluster)
        use_compilation_caches(arguments.cache)
        return train(arguments.experiment, arguments.workdir)

    return run_command("helios-train", work)


def run() -> None:
    """Entry point of ``helios-train``."""

    def leave_to_main(argv: Sequence[str]) -> list[str]:
        flags.FLAGS(argv[:1])
        return list(argv)

    app.run(main, flags_parser=leave_to_main)


if __name__ == "__main__":
    run()
