"""``helios-train``: starts the training of an experiment, or resumes it.

    helios-train --config=stage1_init.py:14b --workdir=runs/stage1_init
    helios-train --config=stage1_init.py:14b --workdir=runs/fast --config.optimizer.learning_rate=1e-4
    helios-train --config=my/experiment.py --workdir=runs/mine

    helios-train --config=stage1_init.py:14b --help_config
    helios-train --config=stage1_init.py:14b --workdir=runs/stage1_init --dry_run

--config is the path of an experiment file or, if there is no such file, the name of an experiment that comes with
helios_jax. An experiment file has a function get_config(size). Every setting can be changed by
--config.<name>=<value>; names that do not exist and values of another type are refused. --help_config lists all
settings with their values, types and documentation, and --print_config writes them as JSON. --dry_run checks settings,
weights and data, counts parameters, and shows what flags change; it writes nothing and uses no accelerator.

WORKDIR gets config.json, checkpoints/, metrics.jsonl, tensorboard/, validation/<step>/ and, at the end,
product/<step>/: a checkpoint that sampling and later stages read. A folder that holds other files is refused.

After any interruption the same command resumes the run. On SIGTERM the state is saved and the exit code is 75.

Several hosts: run the same command on each. --distributed finds the others on clusters that JAX knows (Slurm, Open MPI,
cloud TPUs, Kubernetes); elsewhere add --coordinator=HOST:PORT --num_processes=N --process_id=I.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags

from helios_jax.cli import KEPT, run_command
from helios_jax.experiment_files import experiment_file, installed_experiments, load_experiment
from helios_jax.extras import require_extra
from helios_jax.training.preemption import noted_sigterm
from helios_jax.training.workdir import checked_workdir
from helios_jax.user_input import did_you_mean, user_path
from helios_jax.version import __version__

if TYPE_CHECKING:
    from helios_jax.training.experiment import Experiment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The command line.

    Attributes:
        experiment: The experiment to run.
        original: The experiment as its file defines it.
        workdir: Folder of the run; ``None`` where only settings are listed.
        show: "help_config", "print_config" or "dry_run" instead of training; "": train.
        distributed: Whether there are other processes.
        cluster: Arguments of ``jax.distributed.initialize``.
        cache: Folder for compiled programs.
    """

    experiment: "Experiment"
    original: "Experiment"
    workdir: Path | None
    show: str
    distributed: bool
    cluster: dict[str, Any]
    cache: Path | None


SHOWS = ("help_config", "print_config", "dry_run")


def parse(argv: Sequence[str]) -> Arguments:
    """Reads the command line; ``argv[0]`` is the program.

    Raises:
        FileNotFoundError: There is no such experiment.
        ValueError: Anything else is wrong with it, or the packages for training are not installed.
    """
    argv, values = list(argv), flags.FlagValues()
    into = {"flag_values": values}
    flags.DEFINE_string("workdir", None, "folder of the run", **into)
    flags.DEFINE_boolean("help_config", False, "list all settings of the experiment, and stop", **into)
    flags.DEFINE_boolean("print_config", False, "write the settings as JSON, and stop", **into)
    flags.DEFINE_boolean("dry_run", False, "check settings, weights and data without training", **into)
    flags.DEFINE_boolean("distributed", False, "there are processes on other hosts", **into)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of the first process", **into)
    flags.DEFINE_integer("num_processes", None, "number of processes", **into)
    flags.DEFINE_integer("process_id", None, "number of this process, from 0", **into)
    flags.DEFINE_string("cache", None, "folder for compiled programs (default: in the user's cache folder)", **into)
    if "--version" in argv[1:]:
        print(f"helios_jax {__version__}")
        sys.exit(0)
    if {"-h", "-help", "--help"} & set(argv[1:]):
        # --help must work without the optional packages.
        flags.DEFINE_string("config", None, "FILE:SIZE, an experiment file and the argument of its get_config", **into)
        print(__doc__, values.get_help(), sep="\n")
        print("experiments:", *installed_experiments(), sep="\n  ")
        sys.exit(0)
    require_extra("train", "training")
    from helios_jax.training.overrides import frozen, mutable
    from helios_jax.training.setting_flags import parse_settings

    config, argv = _taken("config", values.read_flags_from_files(argv, force_gnu=False))
    needs_workdir = not {"--help_config", "--print_config"} & set(argv)
    if config is None or (needs_workdir and _taken("workdir", argv)[0] is None):
        _check_names(argv, values)  # a flag may be missing because it is misspelt
    if config is None:
        raise ValueError("give --config, an experiment such as stage1_init.py:14b, and --workdir; --help lists all")
    name, colon, size = config.partition(":")
    file = experiment_file(name)
    if needs_workdir and _taken("workdir", argv)[0] is None:
        raise ValueError("give --workdir, the folder of the run")
    mirror = load_experiment(file, size if colon else None)
    if not dataclasses.is_dataclass(mirror):
        raise ValueError(f"get_config of {file} gave no settings; it must return mutable(Experiment(...))")
    mirror = mutable(mirror)
    original = frozen(mirror, "config")
    experiment, rest = parse_settings(mirror, argv, values)
    if rest:
        raise ValueError(f"what is {' '.join(rest)}? Settings are changed by --config.<name>=<value>")
    show = next((name for name in SHOWS if values[name].value), "")
    cluster = {
        "coordinator_address": values.coordinator,
        "num_processes": values.num_processes,
        "process_id": values.process_id,
    }
    given = {name: value for name, value in cluster.items() if value is not None}
    return Arguments(
        experiment=experiment,
        original=original,
        workdir=None if values.workdir is None else user_path(values.workdir, "--workdir"),
        show=show,
        distributed=values.distributed or bool(given),
        cluster=given,
        cache=None if values.cache is None else user_path(values.cache, "--cache"),
    )


def _check_names(argv: Sequence[str], values: flags.FlagValues) -> None:
    """Raises ValueError for a flag that does not exist; settings of the experiment are not checked."""
    known = ["config", *values]
    for word in argv[1:]:
        name = word.lstrip("-").partition("=")[0]
        if not word.startswith("-") or name.startswith("config.") or name in known or name.removeprefix("no") in known:
            continue
        raise ValueError(f"unknown flag {word.partition('=')[0]}{did_you_mean(f'--{name}', [f'--{k}' for k in known])}")


def _taken(name: str, argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The last value of a flag, and the command line without the flag."""
    value, rest, words = None, [], iter(argv)
    for word in words:
        flag, equals, text = word.partition("=")
        if flag not in (f"--{name}", f"-{name}"):
            rest.append(word)
        elif equals:
            value = text
        else:
            value = next(words, None)
    return value, rest


def main(argv: Sequence[str]) -> int:
    """Trains; returns the exit code."""

    def work() -> int:
        # Checked before the experiment is loaded, which takes seconds.
        if (given := _taken("workdir", argv)[0]) is not None:
            checked_workdir(given)
        arguments = parse(argv)
        if arguments.show:
            return _show(arguments)
        assert arguments.workdir is not None
        import jax

        from helios_jax.compilation import use_compilation_caches
        from helios_jax.training.trainer import train

        if arguments.distributed:
            # After an error in one process the others wait for it in a collective; JAX ends them after this time.
            jax.distributed.initialize(**arguments.cluster, shutdown_timeout_seconds=60)
        use_compilation_caches(arguments.cache)
        return train(arguments.experiment, arguments.workdir)

    with noted_sigterm():  # from here on, so that a signal during loading is not lost
        shows = {f"--{name}" for name in SHOWS} & set(argv)
        return run_command("helios-train", work, leaves="nothing was written" if shows else KEPT)


def _show(arguments: Arguments) -> int:
    """Lists settings, or checks a run; returns the exit code."""
    from helios_jax.training.overrides import as_json
    from helios_jax.training.setting_list import describe

    if arguments.show == "help_config":
        print("Change a setting with --NAME=VALUE, and quote brackets: --config.lora.targets=\"('transformer/.*',)\"\n")
        print(*describe(arguments.experiment), sep="\n")
        return 0
    if arguments.show == "print_config":
        print(json.dumps(as_json(arguments.experiment), indent=2))
        return 0
    import jax

    jax.config.update("jax_platforms", "cpu")  # Other processes may be using the accelerator.
    from helios_jax.training.preview import preview

    assert arguments.workdir is not None
    found = preview(arguments.experiment, arguments.original, arguments.workdir)
    print(*found.lines, sep="\n")
    for problem in found.problems:
        print(f"helios-train: this run cannot start: {problem}", file=sys.stderr)
    return 1 if found.problems else 0


def run() -> None:
    """Entry point of ``helios-train``."""

    def leave_to_main(argv: Sequence[str]) -> list[str]:
        flags.FLAGS(argv[:1])
        return list(argv)

    app.run(main, flags_parser=leave_to_main)


if __name__ == "__main__":
    run()
