"""RMSNorm, SiLU and the sums of frames that a fast convolution over time reads, in one pass: ``norm_silu_pairs``."""

from pallas_kernels.norm_silu_pairs.api import norm_silu_pairs, runs_as_kernel

__all__ = ["norm_silu_pairs", "runs_as_kernel"]
