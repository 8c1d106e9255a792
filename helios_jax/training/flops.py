"""Floating-point operations of a training sample, for the utilisation of the hardware (MFU).

Per network call on S tokens, C of them current, with E text tokens, model width D, hidden width F and L blocks:

    weights    2 L (S (4 D^2 + 2 D F) + 2 C D^2)         self-attention and feed-forward; q and o of cross-attention
    attention  4 L D (S^2 + C E)                                                                                (1)

and once per sample 2 E L 2 D^2 for the keys and values of the text. A training step takes 3 times the attention, twice
the weights (forward, and back to the inputs), once more the weights that are trained, and 3 times the adapters' share.
Recomputation by rematerialisation is not counted, as is usual for MFU; neither are patches and embedders (0.2 %).
"""

import dataclasses
import math
from typing import Any, Protocol, runtime_checkable

import jax

from helios_jax.config import HistoryConfig, TransformerConfig
from helios_jax.training.params import Params

PEAK_FLOPS = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12, "B200": 2250e12}
"""Dense bf16 operations per second by part of the device's name (NVIDIA's data sheets, SXM modules)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkCalls:
    """The transformer calls of one training sample.

    Attributes:
        current: Current tokens of each call.
        history: History tokens of each call.
        text: Text tokens.
    """

    current: tuple[int, ...]
    history: int
    text: int


@runtime_checkable
class CountsCalls(Protocol):
    """A method that counts its network calls: an optional part of ``Method``."""

    def network_calls(self, networks: Any, batch: Any) -> NetworkCalls:
        """The network calls for each sample of a batch with these shapes."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForwardFlops:
    """Floating-point operations of a forward pass: matrix products with weights, and attention."""

    weights: float
    attention: float


def forward_flops(config: TransformerConfig, calls: NetworkCalls) -> ForwardFlops:
    """Equation (1), summed over calls."""
    dim, hidden = config.dim, config.ffn_dim
    weights = attention = 0.0
    for tokens in calls.current:
        total = tokens + calls.history
        weights += 2 * (total * (4 * dim**2 + 2 * dim * hidden) + 2 * tokens * dim**2)
        attention += 4 * dim * (total**2 + tokens * calls.text)
    weights += 2 * calls.text * 2 * dim**2
    return ForwardFlops(weights=config.num_layers * weights, attention=config.num_layers * attention)


def history_tokens(config: TransformerConfig, history_config: HistoryConfig, height: int, width: int) -> int:
    """Tokens of the context at this latent size."""
    frames = [len(indices) for indices in history_config.frame_indices[:3]]
    patch = config.patch_size
    return sum(
        math.prod(-(-size // (factor * p)) for size, p in zip((count, height, width), patch, strict=True))
        for count, factor in zip(frames, (4, 2, 1), strict=True)
    )


def training_flops(method: Any, networks: Any, batch: Any, trainable: Params, frozen: Params) -> float | None:
    """Operations of a training step per sample; ``None`` for methods that do not count their calls.

    A text encoder that is trained is left out; at the published size, it takes about 3 % of a step.
    """
    if not isinstance(method, CountsCalls):
        return None
    forward = forward_flops(networks.transformer.config, method.network_calls(networks, batch))
    kernels = {path: array.size for path, array in (trainable | frozen).items() if "/blocks/" in path}
    total = sum(size for path, size in kernels.items() if path.endswith("kernel"))
    trained = sum(size for path, size in kernels.items() if path.endswith("kernel") and path in trainable)
    adapters = sum(size for path, size in kernels.items() if path.endswith(("lora_a", "lora_b")))
    return forward.weights * (2 + (trained + 3 * adapters) / total) + 3 * forward.attention


def peak_flops() -> float | None:
    """Peak operations per second of all devices together; ``None`` if unknown."""
    kind = jax.devices()[0].device_kind
    return next((jax.device_count() * peak for name, peak in PEAK_FLOPS.items() if name in kind), None)
