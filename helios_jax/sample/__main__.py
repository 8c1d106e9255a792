"""``python -m helios_jax.sample``."""

from helios_jax.sample.command import run

if __name__ == "__main__":
    run()
