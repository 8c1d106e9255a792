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

from helios_jax.checkpoints.components import (
    component_folder,
    find_component,
    read_settings_file,
    with_parameters,
)
from helios_jax.checkpoints.diffusers import load_diffusers
from helios_jax.config import TransformerConfig
from helios_jax.config.fields import Json, SettingError
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
    config = read_wan_config(folder)
    bare = dataclasses.replace(config, has_multi_term_memory_patch=False)
    wan: Any = load_diffusers(folder, "transformer", dtype=dtype, mesh=mesh, config=bare)

    arrays = {path: variable[...] for path, variable in nnx.to_flat_state(nnx.state(wan, nnx.Param))}
    for patcher, pool in _POOLS.items():
        arrays[patcher, "kernel"] = pooling_kernel(wan.patch_embedding.kernel[...], pool)
        arrays[patcher, "bias"] = jnp.copy(wan.patch_embedding.bias[...])
    helios: Any = with_parameters(find_component("transformer").abstract(config, wan.dtype), arrays)
    return helios


def read_wan_config(folder: Path) -> TransformerConfig:
    """The configuration of the network that ``load_wan`` makes; no weights are read.

    Raises:
        FileNotFoundError: Folder or configuration are missing.
        ValueError: The network is not one that Helios can start from.
    """
    return read_settings_file(component_folder(folder, "transformer") / "config.json", _read_config)


def _read_config(json: Json) -> TransformerConfig:
    """Derives Helios' configuration from Wan's, which must be that of a text-to-video model."""
    expected = "that of a text-to-video transformer of Wan2.1, a WanTransformer3DModel without image_dim"
    for key, wanted in (("_class_name", "WanTransformer3DModel"), ("image_dim", None)):
        if json.get(key) != wanted:
            raise SettingError(key, json.get(key), expected)
    head_dim = json.get("attention_head_dim", 128)
    if type(head_dim) is not int or not 6 <= head_dim <= 1024:
        raise SettingError("attention_head_dim", head_dim, "a whole number from 6 to 1024")
    side = 2 * (head_dim // 6)  # The head dimension determines the rotary channels.
    helios = {**json, "_class_name": "HeliosTransformer3DModel", "rope_dim": [head_dim - 2 * side, side, side]}
    return TransformerConfig.from_diffusers(helios)


def pooling_kernel(
    kernel: Float[Array, "frames rows columns C D"], pool: int
) -> Float[Array, "frames2 rows2 columns2 C D"]:
    """The kernel that applies ``kernel`` to the means over ``pool`` positions along every axis, equation (1)."""
    for axis in range(3):
        kernel = jnp.repeat(kernel, pool, axis)
    return (kernel.astype(jnp.float32) / pool**3).astype(kernel.dtype)
