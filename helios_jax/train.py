"""``helios-train``: starts the training of an experiment, or resumes it.

    helios-train --config=stage1_init.py:14b --workdir=runs/stage1_init
    helios-train --config=stage1_init.py:14b --workdir=runs/fast --config.optimizer.learning_rate=1e-4
    helios-train --config=my/experiment.py --workdir=runs/mine

--config is the path of an experiment file or, if there is no such file, the name of an experiment that comes with
helios_jax. An experiment file has a function get_config(size). Every setting can be changed by
--config.<name>=<value>; names that do not exist and values of another type are refused. WORKDIR gets config.json,
checkpoints/, metrics.jsonl, tensorboard/, validation/<step>/ and, at the end, product/<step>/: a checkpoint that
sampling and later stages read.

After any interruption the same command resumes the run. On SIGTERM the state is saved and the exit code is 75.

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
from helios_jax.experiment_files import experiment_file, installed_experiments
from helios_jax.extras import require_extra
from helios_jax.training.preemption import noted_sigterm

if TYPE_CHECKING:
    from helios_jax.training.experiment import Experiment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The command line.

    Attributes:
        experiment: The experiment to run.
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
        FileNotFoundError: There is no such experiment.
        ValueError: Anything else is wrong with it, or the packages for training are not installed.
    """
    argv, values = list(argv), flags.FlagValues()
    into = {"flag_values": values}
    flags.DEFINE_string("workdir", None, "folder of the run", **into)
    flags.DEFINE_boolean("distributed", False, "there are processes on other hosts", **into)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of the first process", **into)
    flags.DEFINE_integer("num_processes", None, "number of processes", **into)
    flags.DEFINE_integer("process_id", None, "number of this process, from 0", **into)
    flags.DEFINE_string("cache", None, "folder for compiled programs (default: in the user's cache folder)", **into)
    if {"-h", "-help", "--help"} & set(argv[1:]):
        # Help must work before anything is installed, so it does not import ml_collections.
        flags.DEFINE_string("config", None, "FILE:SIZE, an experiment file and the argument of its get_config", **into)
        print(__doc__, values.get_help(), sep="\n")
        print("experiments:", *installed_experiments(), sep="\n  ")
        sys.exit(0)
    require_extra("train", "training")
    from ml_collections import config_flags

    from helios_jax.training.overrides import frozen

    argv = _with_experiment_found(argv)
    config_flags.DEFINE_config_file("config", None, "experiment file:size", lock_config=False, sys_argv=argv, **into)
    try:
        rest = values(argv)[1:]
    except (flags.Error, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        # An error in an experiment file arrives with its traceback as text; the last line has the message.
        raise ValueError(str(error.args[0] if error.args else error).strip().splitlines()[-1]) from error
    if rest:
        raise ValueError(f"what is {' '.join(rest)}? Settings are changed by --config.<name>=<value>")
    mirror: Any = values.config
    if mirror is None or values.workdir is None:
        raise ValueError("give --config, an experiment such as stage1_init.py:14b, and --workdir")
    if not dataclasses.is_dataclass(mirror):
        file = config_flags.get_config_filename(values["config"]).partition(":")[0]
        raise ValueError(f"get_config of {file} gave no settings; it must return mutable(Experiment(...))")
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


def _with_experiment_found(argv: Sequence[str]) -> list[str]:
    """The command line with the path of the experiment file in place of its name."""

    def found(value: str) -> str:
        name, colon, size = value.partition(":")
        return f"{experiment_file(name)}{colon}{size}"

    argv = list(argv)
    for place, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        if flag not in ("--config", "-config"):
            continue
        if equals:
            argv[place] = f"{flag}={found(value)}"
        elif place + 1 < len(argv):
            argv[place + 1] = found(argv[place + 1])
    return argv


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

    with noted_sigterm():  # from here on: a signal while the program is loaded loses nothing either
        return run_command("helios-train", work)


def run() -> None:
    """Entry point of ``helios-train``."""

    def leave_to_main(argv: Sequence[str]) -> list[str]:
        flags.FLAGS(argv[:1])
        return list(argv)

    app.run(main, flags_parser=leave_to_main)


if __name__ == "__main__":
    run()
