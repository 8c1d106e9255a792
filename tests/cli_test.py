"""How commands handle errors, signals and work in flight."""

import signal
import subprocess
import sys
import warnings

import jax.numpy as jnp
import pytest

from helios_jax.cli import run_command, run_interruptible


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("no such size"), 1, "tool: no such size"),
        (OSError(28, "No space left on device"), 1, "tool: [Errno 28] No space left on device"),
        (FloatingPointError("loss is nan"), 1, "tool: loss is nan"),
        (KeyboardInterrupt(), 130, "tool: interrupted; what was written so far is kept"),
    ],
)
def test_errors_of_the_user_are_one_line(error, code, line, capsys):
    def work():
        raise error

    assert run_command("tool", work) == code
    assert capsys.readouterr().err == f"{line}\n"


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command("tool", lambda: 1 // 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_lost_interruption_is_found_by_the_check(number):
    """As in a garbage collection, the exception that the handler raises is dropped."""
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    steps = []

    def work(check):
        for step in range(10):
            check()
            steps.append(step)
            if step == 2:
                with pytest.raises(KeyboardInterrupt):
                    signal.raise_signal(number)

    assert run_interruptible("tool", work) == 130
    assert steps == [0, 1, 2]
    assert {each: signal.getsignal(each) for each in before} == before


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_work_in_flight_ends_before_the_command(error):
    seen = []

    def work():
        x = jnp.ones((1500, 1500))
        for _ in range(20):  # far longer than it takes to dispatch
            x = jnp.tanh(x @ x)
        seen.extend([x, x.is_ready()])
        raise error

    run_command("tool", work)
    x, was_ready = seen
    assert not was_ready
    assert x.is_ready()


class XlaRuntimeError(RuntimeError):
    """Stands for JAX's error, which has no public constructor."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            XlaRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12.50GiB.\nAllocator: ..."),
            "tool: the device ran out of memory when 12.50GiB more were needed; use fewer pixels",
        ),
        (XlaRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "tool: the device ran out of memory; use fewer pixels"),
        (MemoryError(), "tool: the machine ran out of memory"),
        (MemoryError("the device has too little memory"), "tool: the device has too little memory\n"),
        (ValueError(""), "tool: ValueError\n"),
    ],
)
def test_lack_of_memory_is_one_line(error, message, capsys):
    def work():
        raise error

    assert run_command("tool", work) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(message)
    assert shown.count("\n") == 1


def test_other_runtime_errors_are_bugs():
    def work():
        raise XlaRuntimeError("INTERNAL: a kernel failed")

    with pytest.raises(XlaRuntimeError):
        run_command("tool", work)


def test_pages_of_other_libraries_are_cut(capsys):
    def work():
        raise ValueError("\n\n".join(["first " + "x" * 1000, "second", "third", "fourth"]))

    assert run_command("tool", work) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["tool: first " + "x" * 594 + "...", "second", "third ..."]


def test_warnings_are_one_line():
    shown = []
    before = warnings.formatwarning
    warning = (UserWarning("the clip is short"), UserWarning, "some/file.py", 3)
    assert run_command("tool", lambda: shown.append(warnings.formatwarning(*warning))) == 0
    assert shown == ["tool: warning: the clip is short\n"]
    assert warnings.formatwarning is before


@pytest.mark.slow
def test_a_closed_pipe_is_no_traceback():
    code = (
        "import sys, time; from helios_jax.cli import run_command\n"
        "def work():\n    for _ in range(100):\n        print('x' * 10000, flush=True)\n        time.sleep(0.01)\n"
        "sys.exit(run_command('tool', work))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        message = process.stderr.read()
    assert process.returncode == 1
    assert message == "tool: standard output was closed; what was written so far is kept\n"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_arguments_are_read(number):
    code = (
        "import signal, time; from helios_jax.cli import run_program\n"
        # Started in the background by a shell, the tests and their processes would ignore SIGINT.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def parse(argv):\n    print('here', flush=True)\n    time.sleep(60)\n"
        "run_program('tool', lambda args: 0, parse)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        process.send_signal(number)
        message = process.stderr.read()
    assert process.returncode == 130
    assert message == "tool: interrupted; what was written so far is kept\n"
