"""Configuration of the text encoder."""

import dataclasses
from typing import Annotated, Any

from helios_jax.config.fields import (
    Depth,
    Epsilon,
    Json,
    Range,
    SettingError,
    Width,
    check_fields,
    publish,
    read_fields,
    require,
)

_TEXT_KEYS = {
    "vocab_size": "vocab_size",
    "d_model": "d_model",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "d_kv": "d_kv",
    "d_ff": "d_ff",
    "relative_attention_num_buckets": "num_buckets",
    "relative_attention_max_distance": "max_distance",
    "layer_norm_epsilon": "eps",
    "pad_token_id": "pad_token_id",
    "eos_token_id": "eos_token_id",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """The UMT5 encoder (``UMT5EncoderModel`` of transformers).

    Attributes:
        vocab_size: Rows of the embedding table.
        d_model: Width of the residual stream.
        num_layers: Blocks.
        num_heads: Attention heads N.
        d_kv: Head dimension K (N K need not equal ``d_model``).
        d_ff: Hidden width of the gated feed-forward layers.
        num_buckets: Buckets of the relative position bias, one table per block.
        max_distance: Offset from which the last bucket is used.
        eps: Epsilon of the RMS norms.
        pad_token_id: Token used for padding.
        eos_token_id: Token appended to every prompt.
    """

    vocab_size: Annotated[int, Range(1, 2**24)] = 256384
    d_model: Width = 4096
    num_layers: Depth = 24
    num_heads: Width = 64
    d_kv: Width = 64
    d_ff: Width = 10240
    num_buckets: Annotated[int, Range(4, 4096)] = 32
    max_distance: Width = 128
    eps: Epsilon = 1e-6
    pad_token_id: Annotated[int, Range(0, 2**24)] = 0
    eos_token_id: Annotated[int, Range(0, 2**24)] = 1

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("pad_token_id", "eos_token_id"):
            if getattr(self, name) >= self.vocab_size:
                raise SettingError(
                    name, getattr(self, name), f"the number of one of the {self.vocab_size} tokens (vocab_size)"
                )
        if self.max_distance <= self.num_buckets // 4:
            expected = f"more than {self.num_buckets // 4}, the number of distances with their own bucket"
            raise SettingError("max_distance", self.max_distance, expected)

    @classmethod
    def umt5_xxl(cls) -> "TextEncoderConfig":
        """The published encoder: 5,680,910,336 parameters."""
        return cls()

    @classmethod
    def tiny(cls) -> "TextEncoderConfig":
        """A small encoder for tests and the demo."""
        return cls(vocab_size=512, d_model=32, num_layers=2, num_heads=4, d_kv=8, d_ff=64)

    @classmethod
    def from_diffusers(cls, json: Json) -> "TextEncoderConfig":
        """Reads ``text_encoder/config.json`` (a transformers file)."""
        require(json, "model_type", "umt5")
        require(json, "architectures", ["UMT5EncoderModel"], ["UMT5Model"], ["UMT5ForConditionalGeneration"], None)
        require(json, "feed_forward_proj", "gated-gelu")
        require(json, "is_gated_act", True)
        require(json, "dense_act_fn", "gelu_new")
        require(json, "is_decoder", False)
        return read_fields(cls, json, _TEXT_KEYS)

    def to_diffusers(self) -> dict[str, Any]:
        """Writes ``text_encoder/config.json``."""
        return {
            "architectures": ["UMT5EncoderModel"],
            "model_type": "umt5",
            "feed_forward_proj": "gated-gelu",
            "is_gated_act": True,
            "dense_act_fn": "gelu_new",
            "is_encoder_decoder": False,
            "use_cache": False,
            "tie_word_embeddings": False,
            **publish(self, _TEXT_KEYS),
        }
