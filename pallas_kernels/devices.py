"""What the kernels need to know about the default device and about the mesh that a call is traced under."""

import jax
from jax.extend import backend


def is_hopper() -> bool:
    """Whether the default device has compute capability 9.0, the only one with wgmma."""
    return jax.default_backend() == "gpu" and backend.get_default_device().compute_capability == "9.0"


def multiprocessors() -> int:
    """Streaming multiprocessors of the default device."""
    return backend.get_default_device().core_count


def compiler_splits_work() -> bool:
    """Whether the function being traced will be divided by the compiler among several devices of a mesh.

    The compiler cannot divide a kernel. Inside ``jax.shard_map`` every device runs a kernel of its own.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1 and not mesh.are_all_axes_manual
