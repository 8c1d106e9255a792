"""Helios from the weights of Wan2.1: all parameters except the history patchers are Wan's, under the same names.

With W the patch embedding of one frame's 2x2 positions, the patchers of the tiers start as

    short(x) = W(x)        mid(x) = W(pool_2(x))        long(x) = W(pool_4(x))                             (1)

where pool_k is the mean over k x k x k positions: each position of W's kernel is repeated k times along every axis and
divided by k^3. (The published training makes these copies before it loads W, so it copies random weights.)
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from helios_jax.checkpoints.components import component_folder, find_component, read_json, with_parameters
from helios_jax.checkpoints.diffusers import load_diffusers
from helios_jax.config import TransformerConfig
from helios_jax.models.transformer import HeliosTransformer
from helios_jax.typing import Array, DType, Float, Path

_POOLS = {"patch_short": 1, "patch_mid": 2, "patch_long": 4}


def load_wan(folder: Path, *, dtype: DType | None = None, mesh: jax.sharding.Mesh | None = None) -> HeliosTransformer:
    """The transformer that stage 1 starts from.

    Args:
        folder: A Wan2.1 checkpoint in the layout of diffusers, or its ``transformer`` folder.
        dtype: See ``load_diffusers``.
        mesh: See ``load_diffusers``.

    Raises:
        FileNotFoundError: Folder, configuration or weights are missing.
        ValueError: Not a text-to-video transformer of Wan2.1, or an error of ``load_diffusers``.
    """
    folder = component_folder(folder, "transformer")
    json = read_json(folder / "config.json")
    if json.get("_class_name") != "WanTransformer3DModel" or json.get("image_dim") is not None:
        raise ValueError(
            f"{folder} holds a {json.get('_class_name')} (image_dim={json.get('image_dim')}); the text-to-video "
            "transformer of Wan2.1 is needed, WanTransformer3DModel without image_dim"
        )
    # Wan's configuration lacks Helios' settings; its rotary channels follow from the head dimension.
    head_dim = json["attention_head_dim"]
    side = 2 * (head_dim // 6)
    config = TransformerConfig.from_diffusers({**json, "rope_dim": [head_dim - 2 * side, side, side]})
    bare = dataclasses.replace(config, has_multi_term_memory_patch=False)
    wan: Any = load_diffusers(folder, "transformer", dtype=dtype, mesh=mesh, config=bare)

    arrays = {path: variable[...] for path, variable in nnx.to_flat_state(nnx.state(wan, nnx.Param))}
    for patcher, pool in _POOLS.items():
        arrays[patcher, "kernel"] = pooling_kernel(wan.patch_embedding.kernel[...], pool)
        arrays[patcher, "bias"] = jnp.copy(wan.patch_embedding.bias[...])
    helios: Any = with_parameters(find_component("transformer").abstract(config, wan.dtype), arrays)
    return helios


def pooling_kernel(
    kernel: Float[Array, "frames rows columns C D"], pool: int
) -> Float[Array, "frames2 rows2 columns2 C D"]:
    """The kernel that applies ``kernel`` to the means over ``pool`` positions along every axis, equation (1)."""
    for axis in range(3):
        kernel = jnp.repeat(kernel, pool, axis)
    return (kernel.astype(jnp.float32) / pool**3).astype(kernel.dtype)
