"""Products of training: a pipeline, or a VAE with the statistics of its latents in its configuration."""

import dataclasses
import pathlib
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from helios_jax.checkpoints.adapters import save_adapters
from helios_jax.checkpoints.components import COMPONENTS, find_component, with_parameters
from helios_jax.checkpoints.diffusers import save_diffusers
from helios_jax.checkpoints.hub import local_folder
from helios_jax.config import PipelineConfig, SchedulerConfig
from helios_jax.models.lora import adapted_layers, merge_lora
from helios_jax.models.network import ConfiguredModule, Network
from helios_jax.models.tokenization import TextEncoder, Tokenizer
from helios_jax.sampling.pipeline import HeliosPipeline
from helios_jax.training.experiment import Data
from helios_jax.training.methods.vae import measure_latents
from helios_jax.training.networks import Networks
from helios_jax.training.starts import Precision, load_part


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A checkpoint that ``HeliosPipeline.from_pretrained`` reads.

    Attributes:
        parts: Folder or hub id of the checkpoint with the tokenizer and the networks that are not trained.
        config: Kind of pipeline.
        scheduler: Settings of its sampler.
        dtype: Precision of transformer and text encoder.
        vae_dtype: Precision of the VAE.
    """

    parts: str
    config: PipelineConfig
    scheduler: SchedulerConfig
    dtype: Precision = "bfloat16"
    vae_dtype: Precision = "bfloat16"

    def join(self, networks: Networks, mesh: Mesh | None) -> HeliosPipeline:
        """The pipeline of these networks; the others are loaded, onto the mesh or the default device."""
        given = _parts(networks)

        def part(name: str, dtype: Precision) -> Any:
            return given[name] if name in given else load_part(self.parts, name, dtype, mesh)

        tokenizer = Tokenizer.from_folder(local_folder(self.parts))
        return HeliosPipeline(
            config=self.config,
            scheduler=self.scheduler,
            transformer=Network.of(part("transformer", self.dtype)),
            vae=Network.of(part("vae", self.vae_dtype)),
            text_encoder=TextEncoder.create(part("text_encoder", self.dtype), tokenizer),
        )

    def export(self, networks: Networks, folder: pathlib.Path) -> None:
        """See ``Product``. Adapters are also saved separately, as ``folder/lora.safetensors``."""
        if adapted_layers(networks):
            save_adapters(networks.transformer, folder / "lora.safetensors")
        parts: dict[str, Any] = {
            name: released(name, network, self.dtype) for name, network in _parts(networks).items()
        }
        self.join(Networks(**parts), mesh=None).save(folder)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasuredVae:
    """``folder/vae``, with the mean and standard deviation of its latents in its configuration.

    Attributes:
        clips: Clips to measure the latents on.
        num_batches: Batches of clips.
        batch_size: Clips per batch.
        dtype: Precision of the parameters.
    """

    clips: Data
    num_batches: int = 16
    batch_size: int = 4
    dtype: Precision = "float32"

    def export(self, networks: Networks, folder: pathlib.Path) -> None:
        """See ``Product``."""
        batches = self.clips.batches(self.batch_size, (0, 1), seed=0)
        clips = (next(batches) for _ in range(self.num_batches))
        config = measure_latents(Network.of(networks.vae), clips)
        save_diffusers(released("vae", networks.vae, self.dtype, config), folder, "vae")


def released(name: str, network: ConfiguredModule, dtype: Precision, config: Any = None) -> ConfiguredModule:
    """A copy of a trained network with adapters merged and parameters cast to the dtypes of published checkpoints.

    Args:
        name: Its name among the networks.
        network: The network; it is not changed.
        dtype: Precision to release it in; parameters that are published only in fp32 stay fp32.
        config: A configuration of the same sizes to release it with; ``None``: its own.
    """
    abstract = find_component(name).abstract(config or network.config, dtype)
    arrays = dict(nnx.to_flat_state(nnx.state(merge_lora(network), nnx.Param)))
    wanted = nnx.to_flat_state(nnx.state(abstract, nnx.Param))
    return with_parameters(
        abstract, {path: jnp.asarray(arrays[path][...], variable.dtype) for path, variable in wanted}
    )


def _parts(networks: Networks) -> dict[str, ConfiguredModule]:
    return {name: vars(networks)[name] for name in COMPONENTS if name in vars(networks)}
