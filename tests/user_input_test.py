"""Checks of paths, names and numbers."""

import math
import pathlib

import numpy as np
import pytest

from helios_jax.user_input import (
    did_you_mean,
    finite_number,
    number_in,
    plain_name,
    user_path,
    whole_number,
    whole_number_in,
    yes_or_no,
)


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/o.mp4") == tmp_path / "o.mp4"
    assert user_path(pathlib.Path("~")) == tmp_path
    assert user_path("a/~b") == pathlib.Path("a/~b")


@pytest.mark.parametrize("path", ["", "a\0b", "x" * 256, "~nobody_of_this_name/o.mp4"])
def test_bad_paths(path):
    with pytest.raises(ValueError, match="out"):
        user_path(path, "out")


@pytest.mark.parametrize("name", ["a", "fox.1", "0", "Fuchs im Schnee", "狐"])
def test_plain_names(name):
    assert plain_name(name) == name


@pytest.mark.parametrize(
    "name", ["", " ", ".", "..", "a/b", "../a", "/etc/passwd", "a\\b", "a\nb", "a\0", "a\t", " a", "x" * 256, "狐" * 86]
)
def test_names_that_are_not_plain(name):
    with pytest.raises(ValueError, match="id"):
        plain_name(name, "id")


@pytest.mark.parametrize(("value", "number"), [(3, 3), (np.int64(3), 3), (np.asarray(3), 3)])
def test_whole_numbers(value, number):
    assert whole_number(value, "n", at_least=1) == number


@pytest.mark.parametrize("value", ["3", 3.0, True, None, 0, 9, float("nan"), [3]])
def test_not_whole_numbers(value):
    with pytest.raises(ValueError, match=r"n=.* must be a whole number from 1 to 8"):
        whole_number(value, "n", at_least=1, at_most=8)


@pytest.mark.parametrize(("value", "number"), [(3, 3.0), (np.float32(0.5), 0.5)])
def test_finite_numbers(value, number):
    assert finite_number(value, "x") == number


@pytest.mark.parametrize("value", ["3", True, None, float("inf"), float("nan"), -1, 10**400, [1.0, 2.0]])
def test_not_finite_numbers(value):
    with pytest.raises(ValueError, match=r"x=.* must be a finite number of at least 0"):
        finite_number(value, "x", at_least=0)


def test_did_you_mean():
    assert did_you_mean("hieght", ["width", "height"]) == "; did you mean height?"
    assert did_you_mean("zzz", ["width", "height"]) == ""


def test_yes_or_no():
    assert yes_or_no(True, "x") is True
    assert yes_or_no(np.bool_(False), "x") is False


@pytest.mark.parametrize("value", ["false", 0, 1.0, None, np.int64(1)])
def test_neither_yes_nor_no(value):
    with pytest.raises(ValueError, match=r"x=.* must be True or False"):
        yes_or_no(value, "x")


@pytest.mark.parametrize(
    ("text", "number"), [("10", 10), (" -.5 ", -0.5), ("1.", 1), ("2E-3", 0.002), ("+inf", math.inf)]
)
def test_numbers_in_texts(text, number):
    assert number_in(text) == number


@pytest.mark.parametrize("text", ["1_0", "\uff11", "", "e3", ".", "1,5", "0x10", "1 0"])
def test_texts_that_are_no_numbers(text):
    with pytest.raises(ValueError, match="is not a number"):
        number_in(text)
    with pytest.raises(ValueError, match="is not a whole number"):
        whole_number_in(text)


def test_whole_numbers_in_texts():
    assert whole_number_in(" +07 ") == 7
    with pytest.raises(ValueError, match=r"'7.0' is not a whole number"):
        whole_number_in("7.0")
