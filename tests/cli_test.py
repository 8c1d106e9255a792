"""How commands handle errors, signals and work in flight."""

import signal

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
