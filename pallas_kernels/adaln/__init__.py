"""Residual sum and modulated LayerNorm in one pass, ``residual_norm``; the sum alone."""

from pallas_kernels.adaln.api import residual_norm
from pallas_kernels.adaln.reference import residual_sum

__all__ = ["residual_norm", "residual_sum"]
