"""The weights that training starts from: random ones, those of Wan2.1, or those of a Helios checkpoint."""

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from helios_jax.checkpoints.components import COMPONENTS, component_folder, find_component
from helios_jax.checkpoints.hub import local_folder
from helios_jax.checkpoints.lora_adapters import load_adapters
from helios_jax.checkpoints.lora_argument import find_lora_file
from helios_jax.checkpoints.weights import load_weights
from helios_jax.config import TextEncoderConfig, TransformerConfig, VaeConfig
from helios_jax.training.methods.vae import prepare_vae
from helios_jax.training.networks import Networks
from helios_jax.training.sharding import state_shardings
from helios_jax.typing import Array, Key, Path
from helios_jax.user_input import user_path

Precision = Literal["bfloat16", "float32"]
"""Dtype of computation and of frozen parameters; trained parameters are always fp32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Random:
    """Random weights for the networks with given sizes.

    Attributes:
        transformer: Sizes of the transformer.
        text_encoder: Sizes of the text encoder.
        vae: Sizes of the VAE.
        dtype: Their precision.
    """

    transformer: TransformerConfig | None = None
    text_encoder: TextEncoderConfig | None = None
    vae: VaeConfig | None = None
    dtype: Precision = "bfloat16"

    def __post_init__(self) -> None:
        check_precision(self.dtype, "dtype")
        if self.transformer is None and self.text_encoder is None and self.vae is None:
            raise ValueError("Random: give the sizes of at least one network (transformer, text_encoder or vae)")

    def networks(self, mesh: Mesh, key: Key[Array, ""]) -> Networks:
        """See ``Start``. Parameters are created with their final sharding."""
        from helios_jax import models

        kinds: dict[str, Any] = {
            "transformer": models.HeliosTransformer,
            "text_encoder": models.Umt5Encoder,
            "vae": models.WanVae,
        }
        sizes = {name: getattr(self, name) for name in kinds if getattr(self, name) is not None}

        def make(key: Key[Array, ""]) -> Networks:
            rngs, dtype = nnx.Rngs(key), jnp.dtype(self.dtype)
            networks = {name: kinds[name](config, dtype=dtype, rngs=rngs) for name, config in sizes.items()}
            if "vae" in networks:
                prepare_vae(networks["vae"])
            return Networks(**networks)

        graph, abstract = nnx.split(nnx.eval_shape(make, key))
        shardings = state_shardings(abstract, mesh)
        return nnx.merge(graph, jax.jit(lambda key: nnx.state(make(key)), out_shardings=shardings)(key))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wan:
    """The transformer of Wan2.1 with new history patchers (``checkpoints.wan``): the start of stage 1.

    Attributes:
        folder: Folder or hub id of a Wan2.1 text-to-video checkpoint in the layout of diffusers.
        dtype: Its precision.
    """

    folder: str
    dtype: Precision = "bfloat16"

    def __post_init__(self) -> None:
        user_path(self.folder, "folder")
        check_precision(self.dtype, "dtype")

    def networks(self, mesh: Mesh, key: Key[Array, ""]) -> Networks:
        """See ``Start``. The key is not used."""
        from helios_jax.checkpoints.wan import load_wan

        return Networks(transformer=load_wan(local_folder(self.folder), dtype=self.dtype, mesh=mesh))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FromCheckpoint:
    """Networks of a Helios checkpoint, in either layout.

    A phase that continues the adapters of an earlier one starts from the weights that they were trained on, with the
    adapters of its product apart: ``adapters="runs/ode/product/2500/lora.safetensors"``. Nothing is lost to rounding
    then. The experiment needs no ``lora``, and trains ".*/lora_[ab]".

    Attributes:
        folder: Folder or hub id, for example the ``product`` of an earlier stage.
        parts: Which of its networks train together.
        dtype: Their precision.
        adapters: LoRA file, or folder with one, whose updates become adapters of the transformer; "": none.
    """

    folder: str
    parts: tuple[str, ...] = ("transformer",)
    dtype: Precision = "bfloat16"
    adapters: str = ""

    def __post_init__(self) -> None:
        user_path(self.folder, "folder")
        check_precision(self.dtype, "dtype")
        if self.adapters and "transformer" not in self.parts:
            raise ValueError(f"adapters={self.adapters!r} belong to a transformer, and parts={self.parts} has none")
        if not self.parts:
            raise ValueError(f"parts=() must name at least one of {', '.join(COMPONENTS)}")
        for part in self.parts:
            find_component(part)

    def networks(self, mesh: Mesh, key: Key[Array, ""]) -> Networks:
        """See ``Start``. The key is not used. Adapters are fp32, as those that training adds."""
        self.check_adapters()
        folder = local_folder(self.folder)
        networks = {part: load_part(folder, part, self.dtype, mesh) for part in self.parts}
        if self.adapters:
            networks["transformer"] = load_adapters(networks["transformer"], self.adapters, dtype="float32")
        return Networks(**networks)

    def check_adapters(self) -> None:
        """Checks that the file of adapters is there and that the weights do not include it.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file lies in the checkpoint: products have their adapters merged.
        """
        if not self.adapters:
            return
        file, folder = find_lora_file(self.adapters), local_folder(self.folder)
        if file.resolve().parent == folder.resolve():
            raise ValueError(
                f"adapters={self.adapters!r} are merged into the transformer of {self.folder} already, and would count "
                "twice: give the folder that they were trained on"
            )


Checkpoint = FromCheckpoint
"""The earlier name of ``FromCheckpoint``, which experiment files may still use."""


def network_configs(start: Any) -> dict[str, Any] | None:
    """Configurations of the networks that training starts with, by name; no weights are loaded.

    Returns:
        The configurations; ``None`` for a start that is not defined here.

    Raises:
        FileNotFoundError: The checkpoint, or a file with settings, is missing.
        ValueError: Settings are not supported.
    """
    if isinstance(start, Random):
        return {name: getattr(start, name) for name in COMPONENTS if getattr(start, name) is not None}
    if isinstance(start, Wan):
        from helios_jax.checkpoints.wan import read_wan_config

        return {"transformer": read_wan_config(local_folder(start.folder))}
    if isinstance(start, FromCheckpoint):
        start.check_adapters()
        folder = local_folder(start.folder)
        return {part: find_component(part).read_config(component_folder(folder, part)) for part in start.parts}
    return None


def check_precision(dtype: str, name: str) -> None:
    """Raises ValueError, naming the choices, for any other dtype."""
    if dtype not in get_args(Precision):
        raise ValueError(f"{name}={dtype!r} must be 'bfloat16' or 'float32'")


def load_part(folder: Path, part: str, dtype: Precision, mesh: Mesh | None) -> Any:
    """One network of a checkpoint, in either layout."""
    return load_weights(local_folder(folder), part, dtype=dtype, mesh=mesh)
