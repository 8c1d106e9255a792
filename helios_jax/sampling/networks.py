"""The networks of a pipeline: where they wait between uses, and the LoRA files of the transformer."""

import dataclasses
import gc

from helios_jax.checkpoints.lora_set import LoadedLora, LoraSet
from helios_jax.checkpoints.parking import PARKABLE, parked_names
from helios_jax.checkpoints.pipelines import parked_network
from helios_jax.models.network import Network
from helios_jax.models.tokenization import TextEncoder
from helios_jax.models.transformer import HeliosTransformer
from helios_jax.models.vae import WanVae
from helios_jax.parallel.host_memory import is_on_host, on_device
from helios_jax.typing import Path


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class _Networks:
    """The networks.

    Attributes:
        transformer: The denoiser.
        vae: Pixels <-> latents.
        text_encoder: Prompts -> embeddings; ``None`` when the checkpoint has none.
    """

    transformer: Network[HeliosTransformer]
    vae: Network[WanVae]
    text_encoder: TextEncoder | None = None
    _loras: LoraSet = dataclasses.field(default_factory=LoraSet, init=False, repr=False)


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class LoadedNetworks(_Networks):
    """Base class of ``HeliosPipeline``. Every method changes the object and returns it."""

    def park[P: _Networks](self: P, *names: str) -> P:
        """Keeps networks in pinned host memory between uses, as "model CPU offload" does; returns the pipeline.

        Videos are the same, bit for bit. A parked network is copied to the device before it is used and deleted there
        afterwards: the text encoder once for the prompts of a call and once for each prompt set live, the VAE for each
        chunk. The copy runs at about 54 GB/s on an H100: 0.2 s for the 11.4 GB of the text encoder in bfloat16. While
        the transformer samples, the device has this memory for larger videos and batches. Running streams keep the
        networks that they started with.

        Args:
            *names: "text_encoder", "vae", or both; by default both.

        Raises:
            ValueError: Another name; or the devices have no pinned host memory.
            MemoryError: Pinned host memory has too little room.
        """
        for name in parked_names(names or PARKABLE, "names"):
            network = getattr(self, name)
            if network is not None and not is_on_host(network):
                setattr(self, name, parked_network(network, name))
        # Modules are reference cycles: without this, those that were loaded would keep their arrays for a while.
        gc.collect()
        return self

    def unpark[P: _Networks](self: P, *names: str) -> P:
        """Brings parked networks back to the device for good; returns the pipeline.

        Args:
            *names: As for ``park``.

        Raises:
            ValueError: Another name.
        """
        for name in parked_names(names or PARKABLE, "names"):
            if is_on_host(network := getattr(self, name)):
                setattr(self, name, on_device(network))
        return self

    @property
    def parked(self) -> tuple[str, ...]:
        """Names of the networks that are in host memory."""
        return tuple(name for name in PARKABLE if is_on_host(getattr(self, name)))

    def load_lora[P: _Networks](
        self: P, path: Path, name: str | None = None, scale: float = 1.0, *, merge: bool = True
    ) -> P:
        """Merges a LoRA file into the transformer, in addition to loaded ones; returns the pipeline.

        The weights depend only on which files are loaded and on their scales: each weight is the original one plus the
        sum of all updates, rounded once. ``unload_lora`` therefore restores the weights bit for bit, in any order. To
        make this possible, host memory holds the files' updates and the originals of all parameters that they change,
        up to 28 GB for a file that updates every layer of the 14B model in bfloat16. Running streams keep the weights
        that they started with. ``save`` writes the weights with all loaded files merged.

        Small updates are lost when a merged weight is rounded to bfloat16, and a distilled model consists of small
        updates. With ``merge=False`` the file's factors stay next to the weights, which are not changed, and every
        layer adds x A B to its output. That takes a few per cent of the speed, memory for the factors (2.5 GB for rank
        256 and 14B in bfloat16), and compilation for each scale and combination of ranks.

        Args:
            path: A safetensors file with the names of diffusers, PEFT, Wan2.1 or Kohya's trainers (see
                ``helios_jax.checkpoints.lora_files``), or a folder that holds one.
            name: Name for ``set_lora`` and ``unload_lora``; by default that of the file without its extension.
            scale: Strength; may be negative or zero.
            merge: Merge it into the weights.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The name is taken, or is a number (write ``scale=0.8``); the scale is not finite; the file
                cannot be merged into this transformer, or without merging holds dense updates. The pipeline is then
                unchanged.
        """
        self.transformer, self._loras = self._loras.with_file(self.transformer, path, name, scale, merge=merge)
        return self

    def set_lora[P: _Networks](self: P, name: str, scale: float) -> P:
        """Changes the strength of a loaded LoRA; returns the pipeline.

        Raises:
            ValueError: No LoRA of this name is loaded, or the scale is not finite.
        """
        self.transformer, self._loras = self._loras.with_scale(self.transformer, name, scale)
        return self

    def unload_lora[P: _Networks](self: P, name: str) -> P:
        """Removes a LoRA as if it had never been loaded, bit for bit; returns the pipeline.

        Raises:
            ValueError: No LoRA of this name is loaded.
        """
        self.transformer, self._loras = self._loras.without(self.transformer, name)
        return self

    @property
    def loras(self) -> dict[str, LoadedLora]:
        """The loaded LoRAs by name, in the order in which they were loaded, each with its path and scale."""
        return dict(self._loras.loras)
