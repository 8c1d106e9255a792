"""Warnings name the line of the user, whatever lies between it and the warning."""

import concurrent.futures
import functools
import inspect
import pathlib
import warnings
from collections.abc import Callable

import jax
import pytest

import helios_jax
import helios_jax.data
import helios_jax.experiments
import pallas_kernels
from helios_jax._warnings import warn_user

FOLDERS = [
    path
    for package in (helios_jax, helios_jax.data, helios_jax.experiments, pallas_kernels)
    for path in package.__path__
]
LIBRARY = str(pathlib.Path(jax.__file__).parent)


def in_file(file: str, body: str, **names: object) -> Callable[[], None]:
    """A function that does ``body``, as if it were written in another file."""
    exec(compile(f"def function():\n    {body}", file, "exec"), names)
    return names["function"]  # type: ignore[return-value]


def place_of_warning(function: Callable[[], None]) -> tuple[str, int]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    (warning,) = caught
    assert str(warning.message) == "here"
    return warning.filename, warning.lineno


@pytest.mark.parametrize("folder", [*FOLDERS, LIBRARY])
def test_packages_and_libraries_are_skipped(folder):
    warn = in_file(f"{folder}/deep/file.py", "warn_user('here')", warn_user=warn_user)
    outer = in_file(f"{folder}/file.py", "partial(warn)()", partial=functools.partial, warn=warn)
    assert place_of_warning(outer) == (__file__, inspect.getsourcelines(place_of_warning)[1] + 3)


def test_the_standard_library_is_skipped():
    warn = in_file(f"{FOLDERS[0]}/file.py", "warn_user('here')", warn_user=warn_user)
    decode = in_file(
        f"{FOLDERS[0]}/file.py", "sorted([1], key=cached(lambda _: warn()))", warn=warn, cached=functools.cache
    )
    file, _ = place_of_warning(decode)
    assert file == __file__


def test_neighbours_of_the_package_are_not_skipped():
    """A user's folder whose name begins like ours."""
    file = f"{FOLDERS[0]}_of_mine/script.py"
    script = in_file(file, "warn_user('here')", warn_user=warn_user)
    assert place_of_warning(script) == (file, 2)


def test_threads_of_the_library_warn_too():
    warn = in_file(f"{FOLDERS[0]}/file.py", "warn_user('here')", warn_user=warn_user)
    with concurrent.futures.ThreadPoolExecutor(1) as pool, pytest.warns(UserWarning, match="here"):
        pool.submit(warn).result()
