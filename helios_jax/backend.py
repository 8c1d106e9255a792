"""The backend of JAX, with an error that says what to do if it cannot start."""

import os


def backend() -> str:
    """The platform that JAX uses, such as "gpu" or "cpu".

    Raises:
        ValueError: JAX finds no device of the platform that it was told to use.
    """
    import jax

    try:
        return jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # the kind depends on which plugins are installed
        wanted = jax.config.jax_platforms or os.environ.get("JAX_PLATFORMS") or "any"
        raise ValueError(
            f"JAX finds no device of the platform {wanted!r} (JAX_PLATFORMS); a GPU needs helios_jax[gpu] and an "
            "NVIDIA driver, and JAX_PLATFORMS=cpu uses the CPU"
        ) from error
