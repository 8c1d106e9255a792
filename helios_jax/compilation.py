"""Caches on disk for compiled programs.

Compiling the three levels and the decoder of the 14B model takes one to two minutes, including autotuning, XLA's choice
of algorithms. The programs and the results of autotuning are kept in a folder for the next process. So are programs for
CPUs, in a folder for each kind of processor: those of a small model take a quarter of a minute on two cores.
"""

import hashlib
import os
import pathlib
import platform

from helios_jax.backend import backend
from helios_jax.typing import Path
from helios_jax.user_input import user_path


def use_compilation_caches(folder: Path | None = None) -> pathlib.Path:
    """Keeps compiled programs and autotuning results on disk; call it before the first program is compiled.

    A folder that is already set (``JAX_COMPILATION_CACHE_DIR``) takes precedence.

    Args:
        folder: The folder to use; ``helios_jax`` in the user's cache folder by default.

    Returns:
        The folder in use.
    """
    import jax

    if jax.config.jax_compilation_cache_dir is not None:
        return pathlib.Path(jax.config.jax_compilation_cache_dir)
    user_cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    folder = user_path(folder or pathlib.Path(user_cache) / "helios_jax", "folder")
    least = 0.2  # seconds of compilation that are worth a file
    if backend() == "cpu":
        # A home directory may serve machines with different processors, whose programs do not run on each other.
        folder /= f"cpu-{_processor()}"
        # Together the programs below 0.2 s take as long as reading all the others.
        least = 0.0
    folder.mkdir(parents=True, exist_ok=True)
    # JAX keeps XLA's autotuning results in a subfolder (jax_persistent_cache_enable_xla_caches), and
    # pallas_kernels.lowering keeps lowered kernels in another.
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
    return folder


def _processor() -> str:
    """A digest of the instructions that this machine's processor knows, as far as the system tells them."""
    facts = {platform.machine()}
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    facts |= {line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "flags", "Features"))}
    return hashlib.sha256("\n".join(sorted(facts)).encode()).hexdigest()[:12]
