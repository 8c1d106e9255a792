"""Non-causal softmax attention."""

from pallas_kernels.attention.api import Implementation, attention, attention_packed
from pallas_kernels.attention.hopper import AttentionConfig
from pallas_kernels.attention.reference import attention_reference

__all__ = ["AttentionConfig", "Implementation", "attention", "attention_packed", "attention_reference"]
