"""Compiled programs that outlive the process.

Compiling the three levels and the decoder of the 14B model, with XLA's choice of matrix-product algorithms
(autotuning), takes one to two minutes; both results are kept in a folder for the next process.
"""

import os
import pathlib

from helios_jax.typing import Path

_AUTOTUNE_FLAG = "--xla_gpu_per_fusion_autotune_cache_dir"


def use_compilation_caches(folder: Path | None = None) -> pathlib.Path | None:
    """Keeps compiled programs and autotuning results on disk; call it before the first use of a device.

    Does nothing on a CPU, whose programs are specific to the machine and quick to compile. Settings of the
    environment (``JAX_COMPILATION_CACHE_DIR``, the flag in ``XLA_FLAGS``) are left as they are.

    Args:
        folder: Where to keep them; ``helios_jax`` in the user's cache folder by default.

    Returns:
        The folder, or ``None`` on a CPU.
    """
    user_cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    folder = pathlib.Path(folder or pathlib.Path(user_cache) / "helios_jax")
    flags = os.environ.get("XLA_FLAGS", "")
    if _AUTOTUNE_FLAG not in flags:
        # Read once, when the first device is used; CPUs ignore it.
        os.environ["XLA_FLAGS"] = f"{flags} {_AUTOTUNE_FLAG}={folder / 'autotune'}".strip()
    (folder / "autotune").mkdir(parents=True, exist_ok=True)

    import jax

    if jax.default_backend() == "cpu":
        return None
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    return folder
