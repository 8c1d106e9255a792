"""Non-causal softmax attention."""

from pallas_kernels.attention.api import ImplementationName, attention, attention_packed
from pallas_kernels.attention.config import AttentionConfig
from pallas_kernels.attention.reference import attention_reference

__all__ = ["AttentionConfig", "ImplementationName", "attention", "attention_packed", "attention_reference"]
