"""Products of training: a pipeline, or a VAE with the statistics of its latents in its configuration."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Generator
from typing import Any

import jax
from jax.sharding import Mesh

from helios_jax.checkpoints.adapters import save_adapters
from helios_jax.checkpoints.components import COMPONENTS, write_json
from helios_jax.checkpoints.diffusers import StoredTensors
from helios_jax.checkpoints.hub import local_folder
from helios_jax.checkpoints.settings import PipelineSettings, check_agreement
from helios_jax.config import PipelineConfig, SchedulerConfig
from helios_jax.models.lora import adapted_layers
from helios_jax.models.network import ConfiguredModule, Network
from helios_jax.models.tokenization import TextEncoder, Tokenizer
from helios_jax.sampling.pipeline import HeliosPipeline
from helios_jax.training.experiment import Data, Start
from helios_jax.training.log import report
from helios_jax.training.merge_report import measure
from helios_jax.training.methods.vae import measure_latents
from helios_jax.training.networks import Networks
from helios_jax.training.release import check_copied, copy_part, copy_tokenizer, save_released
from helios_jax.training.released import Released
from helios_jax.training.starts import Precision, check_precision, load_part, network_configs
from helios_jax.user_input import user_path, whole_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A checkpoint that ``HeliosPipeline.from_pretrained`` reads.

    Attributes:
        parts: Folder or hub id of the checkpoint with the tokenizer and the networks that are not trained.
        config: Kind of pipeline.
        scheduler: Settings of its sampler.
        dtype: Precision of transformer and text encoder: of trained networks in the product, and of the other networks
            in validation. The product copies a network that is not trained in its stored precision. Small updates,
            such as those of distillation, need "float32" here: see the report that ``export`` writes.
        vae_dtype: The same for the VAE.
        source: Folder or hub id of the checkpoint that training started from, if it holds the transformer in fp32 and
            in the published layout: its weights are read again when adapters are merged into them, so the product
            does not contain the rounding of the frozen weights. "": merge into the frozen weights.
    """

    parts: str
    config: PipelineConfig
    scheduler: SchedulerConfig
    dtype: Precision = "bfloat16"
    vae_dtype: Precision = "bfloat16"
    source: str = ""

    def __post_init__(self) -> None:
        user_path(self.parts, "parts")
        for name in ("dtype", "vae_dtype"):
            check_precision(getattr(self, name), name)

    def check(self, start: Start) -> None:
        """See ``NeedsFiles``. Of a start that is not one of ``training.starts``, only the tokenizer is checked."""
        folder, configs = local_folder(self.parts), network_configs(start)
        with self._source() as source:
            if source is not None and configs is not None and source.config != configs.get("transformer"):
                raise ValueError(f"source={self.source!r} is a transformer of other sizes than that of the start")
        if configs is None:
            check_copied(folder, ())
            return
        configs |= check_copied(folder, [name for name in COMPONENTS if name not in configs])
        check_agreement(PipelineSettings(folder=folder, config=self.config, scheduler=self.scheduler, **configs))

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
        """See ``Product``. Adapters of the transformer are also saved separately, as ``folder/lora.safetensors``.

        How much merging them has lost is printed and written to ``folder/merging.json`` (``merge_report``).

        In addition to ``networks``, this needs device memory for one layer of one kernel at a time
        (``training.release``). Networks that were not trained are not loaded onto the device.

        Raises:
            FloatingPointError: A value is not finite; the folder then has no ``model_index.json``, which marks a
                complete checkpoint.
            ValueError: ``source`` holds other weights than those that were frozen.
        """
        trained, parts = _parts(networks), local_folder(self.parts)
        if "transformer" in trained and adapted_layers(trained["transformer"]):
            save_adapters(trained["transformer"], folder / "lora.safetensors")
        with self._source() as source:
            for name in COMPONENTS:
                if name not in trained:
                    copy_part(parts, name, folder)
                elif name == "transformer":
                    save_released(name, trained[name], folder, self.dtype, source=source)
                    self._report_merging(trained[name], folder, source)
                else:
                    save_released(name, trained[name], folder, self.vae_dtype if name == "vae" else self.dtype)
        copy_tokenizer(parts, folder)
        if jax.process_index() > 0:
            return
        (folder / "scheduler").mkdir(exist_ok=True)
        write_json(folder / "scheduler" / "scheduler_config.json", self.scheduler.to_diffusers())
        # Written last, because a folder without it counts as an unfinished checkpoint.
        write_json(folder / "model_index.json", self.config.to_diffusers(self.scheduler))

    @contextlib.contextmanager
    def _source(self) -> Generator[StoredTensors | None]:
        """The files of ``source``, or ``None`` without one."""
        if not self.source:
            yield None
            return
        with StoredTensors(local_folder(self.source), "transformer") as source:
            # Some small parameters are fp32 in every checkpoint; kernels decide.
            if not any(dtype.itemsize >= 4 for name, dtype in source.dtypes.items() if ".to_" in name):
                raise ValueError(f"source={self.source!r} holds no kernels in fp32, so it adds nothing: leave it out")
            yield source

    def _report_merging(self, transformer: Any, folder: pathlib.Path, source: StoredTensors | None) -> None:
        """Measures and reports what merging has lost, if there are adapters that were trained."""
        if not adapted_layers(transformer):
            return
        found = measure(transformer, Released("transformer", transformer, self.dtype, source=source))
        if found.updates and jax.process_index() == 0:
            report(str(found))
            write_json(folder / "merging.json", {**found.to_json(), "source": self.source})


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

    def __post_init__(self) -> None:
        whole_number(self.num_batches, "num_batches", at_least=1)
        whole_number(self.batch_size, "batch_size", at_least=1)
        check_precision(self.dtype, "dtype")

    def export(self, networks: Networks, folder: pathlib.Path) -> None:
        """See ``Product``."""
        batches = self.clips.batches(self.batch_size, (0, 1), seed=0)
        clips = (next(batches) for _ in range(self.num_batches))
        config = measure_latents(Network.of(networks.vae), clips)
        save_released("vae", networks.vae, folder, self.dtype, config)


def _parts(networks: Networks) -> dict[str, ConfiguredModule]:
    return {name: vars(networks)[name] for name in COMPONENTS if name in vars(networks)}
