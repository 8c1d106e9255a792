"""Translation between configurations and the JSON files of the published layout."""

from collections.abc import Mapping
from typing import Any

Json = Mapping[str, Any]


def require(json: Json, key: str, allowed: tuple[Any, ...], component: str) -> None:
    """Raises ValueError when ``json[key]`` is present with a value that we do not implement."""
    if key in json and json[key] not in allowed:
        wanted = " or ".join(repr(value) for value in allowed)
        raise ValueError(f"{component} config: {key}={json[key]!r} is not supported; expected {wanted}")


def rename(json: Json, names: Mapping[str, str]) -> dict[str, Any]:
    """Picks ``names`` (published key -> field) out of ``json``; lists become tuples."""
    found = {field: json[key] for key, field in names.items() if key in json}
    return {field: tuple(value) if isinstance(value, list) else value for field, value in found.items()}


def publish(config: Any, names: Mapping[str, str]) -> dict[str, Any]:
    """Inverse of ``rename``: the published keys of ``config``; tuples become lists."""
    values = {key: getattr(config, field) for key, field in names.items()}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
