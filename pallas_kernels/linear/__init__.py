"""Matrix product with bias and activation: ``linear``."""

from pallas_kernels.linear.api import Activation, linear

__all__ = ["Activation", "linear"]
