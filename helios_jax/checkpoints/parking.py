"""Which networks of a pipeline may wait in host memory between uses. Imports nothing heavy."""

from collections.abc import Sequence

from helios_jax.user_input import did_you_mean

PARKABLE = ("text_encoder", "vae")
"""Networks that are used once per prompt or once per chunk. The transformer runs all the time."""


def parked_names(names: Sequence[str], what: str = "park") -> tuple[str, ...]:
    """The names, each once.

    Raises:
        ValueError: One is not in ``PARKABLE``, or a bare text is given.
    """
    known = ", ".join(map(repr, PARKABLE))
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ValueError(f"{what}={names!r} must be a sequence with any of {known}, such as {what}=('vae',)")
    for name in names:
        if name not in PARKABLE:
            raise ValueError(f"{what}: {name!r} cannot be parked, only {known}{did_you_mean(str(name), PARKABLE)}")
    return tuple(dict.fromkeys(names))
