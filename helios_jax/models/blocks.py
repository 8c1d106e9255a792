"""A block of the Helios DiT and its parts.

Tokens are ordered  long | mid | short | current.  History tokens (clean, timestep 0) and current tokens (noisy,
timestep t) attend to each other in every block; only current tokens attend to the text:

    x <- x + gate * Attention( LN(x) (1 + scale) + shift )         q, k: RMSNorm over all heads, RoPE    (1)
    x_current <- x_current + CrossAttention( LN(x_current), text )                                        (2)
    x <- x + gate' * FFN( LN(x) (1 + scale') + shift' )                                                   (3)

with (shift, scale, gate, shift', scale', gate') = table of the block + modulation of the token's timestep. A sample has
only two distinct modulations, one for history (t = 0) and one for current tokens; neither is materialised per token.

Source: arXiv 2603.04379; numerics as diffusers 0.42.1 ``HeliosTransformer3DModel``: norms, modulation, gates
and residual sums in fp32, everything in between in the compute dtype.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from helios_jax.config import TransformerConfig
from helios_jax.models.layers import LayerNormAffine, Scale, linear, rms_norm
from helios_jax.models.rope import RopeTable
from helios_jax.parallel.memory import ATTENTION
from helios_jax.typing import Array, DType, Float
from pallas_kernels.adaln import residual_norm, residual_sum
from pallas_kernels.attention import attention, attention_packed
from pallas_kernels.qk_norm_rope import qk_norm_rope

_MAX_HISTORY_SCALE = 10.0
"""Upper limit of the learned amplification of history keys."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TextContext:
    """Keys and values of the text, for all blocks or, inside a loop over blocks, for one.

    Attributes:
        k: Keys.
        v: Values.
        last_key_count: Number of tokens that the last key and value stand for. All padding tokens of a prompt have
            the same key and value, so one of them, weighted by their number, represents them all.
    """

    k: Float[Array, "*L B S N K"]
    v: Float[Array, "*L B S N K"]
    last_key_count: int = dataclasses.field(default=1, metadata={"static": True})


class SelfAttention(nnx.Module):
    """Attention of all tokens to all tokens, equation (1). One projection gives queries, keys and values."""

    def __init__(self, config: TransformerConfig, *, dtype: DType, param_dtype: DType, rngs: nnx.Rngs):
        dim, types = config.dim, {"dtype": dtype, "param_dtype": param_dtype}
        self.to_qkv = linear(dim, 3 * dim, **types, rngs=rngs)
        self.to_out = linear(dim, dim, **types, rngs=rngs)
        self.norm_q = Scale(dim, param_dtype=param_dtype)
        self.norm_k = Scale(dim, param_dtype=param_dtype)
        if config.is_amplify_history:
            heads = config.num_heads if config.history_scale_mode == "per_head" else 1
            self.history_key_scale = nnx.Param(jnp.ones((heads,), jnp.float32))
        self.config = config

    def __call__(
        self, x: Float[Array, "B S D"], rope: RopeTable, num_history: int, num_tokens: int, first_query: int = 0
    ) -> Float[Array, "B S2 D"]:
        """Lets the tokens from ``first_query`` on attend to the first ``num_tokens`` tokens."""
        config, dim = self.config, x.shape[-1]
        qkv = self.to_qkv(x)
        q, k = qk_norm_rope(
            qkv, qkv, self.norm_q.scale[...], self.norm_k.scale[...], rope, q_start=0, k_start=dim, eps=config.eps
        )
        if config.is_amplify_history:
            k = self._amplify(k, num_history)
        # Attention reads the values in place, as the last third of the fused projection's heads, without a copy.
        heads = qkv.reshape(*x.shape[:2], 3 * config.num_heads, config.head_dim)
        out = attention_packed(
            q[:, first_query:],
            k,
            heads,
            num_heads=config.num_heads,
            first_heads=(0, 0, 2 * config.num_heads),
            kv_length=num_tokens,
            residual_name=ATTENTION,
        )
        return self.to_out(out.reshape(*out.shape[:2], dim))

    def _amplify(self, k: Float[Array, "B S N K"], num_history: int) -> Float[Array, "B S N K"]:
        """Scales the history's keys by the learned factor in (1, 10)."""
        # Scaling a key scales its logits, so the attention kernel needs no argument for it.
        factor = 1.0 + jax.nn.sigmoid(self.history_key_scale[...]) * (_MAX_HISTORY_SCALE - 1.0)
        history = jnp.arange(k.shape[1])[:, None, None] < num_history
        return (k.astype(jnp.float32) * jnp.where(history, factor[:, None], 1.0)).astype(k.dtype)


class CrossAttention(nnx.Module):
    """Attention to the text, equation (2)."""

    def __init__(self, config: TransformerConfig, *, dtype: DType, param_dtype: DType, rngs: nnx.Rngs):
        dim, types = config.dim, {"dtype": dtype, "param_dtype": param_dtype}
        self.to_q, self.to_k, self.to_v, self.to_out = (linear(dim, dim, **types, rngs=rngs) for _ in range(4))
        self.norm_q = Scale(dim, param_dtype=param_dtype)
        self.norm_k = Scale(dim, param_dtype=param_dtype)
        self.num_heads = config.num_heads
        self.eps = config.eps

    def project(self, text: Float[Array, "B S D"]) -> TextContext:
        """Computes the keys and values of embedded text."""
        k = rms_norm(self.to_k(text), self.norm_k.scale[...], self.eps)
        return TextContext(k=self._heads(k), v=self._heads(self.to_v(text)))

    def __call__(self, x: Float[Array, "B S D"], text: TextContext | Float[Array, "B S2 D"]) -> Float[Array, "B S D"]:
        """Lets all tokens of ``x`` attend to the text; embedded text is projected first."""
        if not isinstance(text, TextContext):
            text = self.project(text)
        q = rms_norm(self.to_q(x), self.norm_q.scale[...], self.eps)
        out = attention(self._heads(q), text.k, text.v, last_key_count=text.last_key_count)
        return self.to_out(out.reshape(x.shape))

    def _heads(self, x: Float[Array, "B S D"]) -> Float[Array, "B S N K"]:
        return x.reshape(*x.shape[:2], self.num_heads, -1)


class FeedForward(nnx.Module):
    """Two linear layers with a tanh-approximated GELU in between, the network of equation (3)."""

    def __init__(self, config: TransformerConfig, *, dtype: DType, param_dtype: DType, rngs: nnx.Rngs):
        self.proj_in = linear(config.dim, config.ffn_dim, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.proj_out = linear(config.ffn_dim, config.dim, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        return self.proj_out(self.proj_in(x, activation="gelu"))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Residual:
    """The residual stream between blocks: x + gate * update, not yet summed.

    The next norm computes the sum, since it reads the stream anyway: one pass over memory instead of two.

    Attributes:
        x: The stream before the last sub-layer.
        update: Output of the last sub-layer; ``None`` if it is already added to x.
        gate: Gates of the update, fp32: one for history and one for current tokens, or one for both.
    """

    x: Float[Array, "B S D"]
    update: Float[Array, "B S D"] | None = None
    gate: Float[Array, "B R D"] | None = None


class Block(nnx.Module):
    """One transformer block, equations (1) to (3)."""

    def __init__(self, config: TransformerConfig, *, dtype: DType, param_dtype: DType, rngs: nnx.Rngs):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.attn1 = SelfAttention(config, **types)
        self.attn2 = CrossAttention(config, **types)
        self.ffn = FeedForward(config, **types)
        if config.cross_attn_norm:
            self.norm2 = LayerNormAffine(config.dim)
        self.scale_shift_table = nnx.Param(jax.random.normal(rngs.params(), (6, config.dim)) / math.sqrt(config.dim))
        self.config = config

    def __call__(
        self,
        residual: Residual,
        *,
        text: TextContext | Float[Array, "B S2 D"],
        modulation: Float[Array, "B R 6 D"],
        rope: RopeTable,
        num_history: int,
        num_tokens: int,
        is_last: bool = False,
    ) -> Residual:
        """The stream after the block.

        Args:
            residual: The stream before it.
            text: Keys and values, or embedded text to project here.
            modulation: Six vectors for history and six for current tokens, or one set for both.
            rope: Rotary table of all tokens.
            num_history: History tokens, which come first.
            num_tokens: History and current tokens; what follows is padding and is not attended to.
            is_last: Return current tokens and padding only. History then only gives keys and
                values, since nothing reads it after the last block.
        """
        config = self.config
        norm = functools.partial(residual_norm, num_history=num_history, eps=config.eps)
        vectors = self.scale_shift_table[...] + modulation.astype(jnp.float32)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = jnp.unstack(vectors, axis=2)

        # Each norm also performs the addition that the previous sub-layer deferred, and returns the summed stream x.
        x, y = norm(residual.x, residual.update, gate=residual.gate, scale=1 + scale, shift=shift)
        update = self.attn1(y, rope, num_history, num_tokens, first_query=num_history if is_last else 0)
        if is_last:
            # From here on there are only current tokens: attention has used the keys and values of history.
            x, num_history = x[:, num_history:], 0
            # Without history only the current tokens' vectors are needed, the last of each pair.
            gate, ffn_shift, ffn_scale, ffn_gate = (vector[:, -1:] for vector in (gate, ffn_shift, ffn_scale, ffn_gate))
            norm = functools.partial(residual_norm, eps=config.eps)

        # With guidance_cross_attn only current tokens attend to the text: the norm and projections of history are
        # not computed at all.
        text_for_all = not config.guidance_cross_attn
        weight, bias = self._norm2_affine()
        x, y = norm(x, update, gate=gate, scale=weight, shift=bias, norm_history=text_for_all)
        if not config.cross_attn_norm:
            y = x if text_for_all else x[:, num_history:]
        update = self.attn2(y, text)

        x, y = norm(x, update, gate=None, scale=1 + ffn_scale, shift=ffn_shift)
        return Residual(x=x, update=self.ffn(y), gate=ffn_gate)

    def _norm2_affine(self) -> tuple[Float[Array, "1 1 D"], Float[Array, "1 1 D"]]:
        """Weight and bias of the norm before cross-attention; ones and zeros if the model has none."""
        if self.config.cross_attn_norm:
            return self.norm2.scale[...][None, None], self.norm2.bias[...][None, None]
        return jnp.ones((1, 1, self.config.dim)), jnp.zeros((1, 1, self.config.dim))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditions:
    """The arrays that all blocks share.

    Attributes:
        modulation: Six modulation vectors for history and six for current tokens, or one set for both.
        rope: Rotary table, padding included.
        text: Embedded text, projected by each block; ``None`` where each block has its own ``TextContext``.
    """

    modulation: Float[Array, "B R 6 D"]
    rope: RopeTable
    text: Float[Array, "B S2 D"] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockLayer:
    """A block in the form that ``helios_jax.parallel.execution.Layers`` runs: a ``Layer[Residual]``.

    Attributes:
        graph: Static half of the block.
        num_history: History tokens, which come first.
        num_tokens: History and current tokens; padding follows.
    """

    graph: nnx.GraphDef[Block]
    num_history: int
    num_tokens: int

    def __call__(
        self,
        residual: Residual,
        layer: tuple[nnx.State, TextContext | None],
        constants: Conditions,
        *,
        is_last: bool = False,
    ) -> Residual:
        """Runs the block on its own parameters and, if the text was projected before, its own keys and values."""
        state, own_text = layer
        text = constants.text if own_text is None else own_text
        assert text is not None, "text is projected before or embedded"
        return nnx.merge(self.graph, state)(
            residual,
            text=text,
            modulation=constants.modulation,
            rope=constants.rope,
            num_history=self.num_history,
            num_tokens=self.num_tokens,
            is_last=is_last,
        )

    def pending(self, x: Float[Array, "B S D"], constants: Conditions) -> Residual:
        """``x`` with an update of zero pending: the structure that a call returns."""
        gates = constants.modulation[:, :, 0]
        return Residual(x=x, update=jnp.zeros_like(x), gate=jnp.zeros_like(gates, jnp.float32))

    def settled(self, x: Float[Array, "B S D"]) -> Residual:
        """``x`` with no update pending."""
        return Residual(x=x)

    def total(self, residual: Residual) -> Float[Array, "B S D"]:
        """The stream as one array, with the pending update added."""
        if residual.update is None:
            return residual.x
        return residual_sum(residual.x, residual.update, residual.gate, num_history=self.num_history)

    def last_tokens(self, x: Float[Array, "B S D"]) -> Float[Array, "B S2 D"]:
        """Current tokens and padding."""
        return x[:, self.num_history :]
