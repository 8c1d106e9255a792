"""Parameters by path, and values for them by lists of (pattern, value): the first pattern that matches decides."""

import re
from collections.abc import Iterable
from typing import Any

from flax import nnx, traverse_util

from helios_jax.user_input import finite_number

Params = dict[str, Any]
"""Arrays (or their shapes or shardings) by path, such as "transformer/blocks/attn1/to_qkv/kernel"."""

Rules = tuple[tuple[str, float], ...]
"""(pattern, value) pairs; a pattern must match a whole path. Values that switch something are 0 or 1."""


def flatten[M: nnx.Module](module: M) -> tuple[nnx.GraphDef[M], Params]:
    """Static structure and parameters of a module, whose leaves may be abstract."""
    graph, state = nnx.split(module)
    return graph, {"/".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(state)}


def unflatten[M: nnx.Module](graph: nnx.GraphDef[M], params: Params) -> M:
    """Inverse of ``flatten``."""
    paths = {tuple(int(part) if part.isdigit() else part for part in path.split("/")): path for path in params}
    return nnx.merge(graph, traverse_util.unflatten_dict({parts: params[path] for parts, path in paths.items()}))


def count_text(params: Params) -> str:
    """The number of parameters as readable text."""
    count = sum(array.size for array in params.values())
    return f"{count / 1e6:,.1f}M" if count >= 10**5 else f"{count:,}"


def check_rules(rules: Any, what: str, *, switch: bool = False) -> None:
    """Raises ValueError unless rules are pairs of a valid pattern and a finite value of at least 0.

    Args:
        rules: The rules.
        what: Their name, for the error.
        switch: Whether the values must be 0 or 1.
    """
    for rule in rules if isinstance(rules, tuple | list) else [rules]:
        if not isinstance(rule, tuple | list) or len(rule) != 2:
            raise ValueError(f"{what}: {rule!r} must be a pair (pattern, value) in a list of pairs")
        check_pattern(rule[0], what)
        value = finite_number(rule[1], f"{what}: the value of {rule[0]!r}", at_least=0)
        if switch and value not in (0, 1):
            raise ValueError(f"{what}: the value of {rule[0]!r} must be 0 or 1, got {rule[1]!r}")


def check_pattern(pattern: Any, what: str) -> None:
    """Raises ValueError unless ``pattern`` is a regular expression."""
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(f"{what}: {pattern!r} is not a regular expression ({error}); '.*' matches anything") from error


def values_by_pattern(rules: Rules, paths: Iterable[str], default: float) -> dict[str, float]:
    """The value of each path by ``rules``, or ``default`` where none matches.

    Raises:
        ValueError: A rule is the first match of no path: it is misspelt, or a wider rule precedes it.
    """
    paths = list(paths)
    first = {path: next((pattern for pattern, _ in rules if re.fullmatch(pattern, path)), None) for path in paths}
    idle = [pattern for pattern, _ in rules if pattern not in first.values()]
    if idle:
        raise ValueError(
            f"the patterns {idle} decide nothing: each must be the first in its list to match a parameter; "
            f"the parameters are {', '.join(paths)}"
        )
    values: dict[Any, float] = dict(reversed(rules))  # the first of equal patterns counts
    return {path: default if pattern is None else values[pattern] for path, pattern in first.items()}
