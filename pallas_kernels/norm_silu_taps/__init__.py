"""RMSNorm, SiLU and the gathering of three frames in one pass: ``norm_silu_taps``."""

from pallas_kernels.norm_silu_taps.api import norm_silu_taps, runs_as_kernel

__all__ = ["norm_silu_taps", "runs_as_kernel"]
