"""Residual sum and modulated LayerNorm in one pass: ``residual_norm``."""

from pallas_kernels.adaln.api import residual_norm

__all__ = ["residual_norm"]
