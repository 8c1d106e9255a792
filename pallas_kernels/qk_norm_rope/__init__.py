"""RMSNorm and rotary embedding of queries and keys in one pass: ``qk_norm_rope``."""

from pallas_kernels.qk_norm_rope.api import qk_norm_rope

__all__ = ["qk_norm_rope"]
