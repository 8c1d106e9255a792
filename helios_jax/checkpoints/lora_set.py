"""The LoRA files of a transformer, by name, with everything needed to remove them again.

The original of every parameter that a file changes is kept, in host memory if the transformer is on an accelerator.
When a file is added, removed or rescaled, the parameters that it changes are recomputed from their originals and all
files then in the set, in the order of their names, and rounded once. The weights therefore depend only on the files in
the set and their scales, and removing the last file restores the original bits.

Files that are not merged are adapters next to the kernels (``lora_adapters``) and change no parameter.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from helios_jax.checkpoints.key_tables import ParamPath
from helios_jax.checkpoints.lora_adapters import with_adapters
from helios_jax.checkpoints.lora_argument import find_lora_file, lora_name, lora_scale
from helios_jax.checkpoints.lora_files import LoraDelta, read_lora
from helios_jax.checkpoints.lora_merge import Change, changes_of, merged_arrays, with_arrays
from helios_jax.models.lora import strip_lora
from helios_jax.models.network import ConfiguredModule, Network
from helios_jax.typing import Array, Path
from helios_jax.user_input import did_you_mean, yes_or_no


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LoadedLora:
    """A LoRA file that is loaded.

    Attributes:
        path: The file.
        scale: Its strength.
        is_merged: Whether it is merged into the kernels; otherwise it is a set of adapters.
        deltas: Its updates, in host memory, by published name.
    """

    path: pathlib.Path
    scale: float
    is_merged: bool = True
    deltas: Mapping[str, LoraDelta] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LoraSet:
    """The loaded files and the original parameters.

    Attributes:
        loras: The files by name, in the order in which they were added.
        originals: The parameters that merged ones change, before any of them was merged.
        merged: The same parameters in the transformer, to detect when other code replaces them.
    """

    loras: Mapping[str, LoadedLora] = dataclasses.field(default_factory=dict)
    originals: Mapping[ParamPath, Array] = dataclasses.field(default_factory=dict, repr=False)
    merged: Mapping[ParamPath, Array] = dataclasses.field(default_factory=dict, repr=False)

    def with_file[N: Network[Any]](
        self, transformer: N, path: Path, name: str | None = None, scale: float = 1.0, *, merge: bool = True
    ) -> tuple[N, "LoraSet"]:
        """Adds a file.

        Args:
            transformer: The transformer with this set's files; its arrays stay valid.
            path: See ``read_lora``.
            name: Name for ``with_scale`` and ``without``; the stem of the file's name by default.
            scale: Strength; negative or zero as well.
            merge: Merge it into the kernels; otherwise its updates become adapters.

        Returns:
            The transformer with the file, and the new set.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The name is taken or not a text; the scale is not finite; the errors of ``merge_lora_file`` or
                of ``load_adapters``.
        """
        scale = lora_scale(scale)
        path = find_lora_file(path)
        name = lora_name(name, path)
        if name in self.loras:
            raise ValueError(
                f"a LoRA named {name!r} is loaded already ({self.loras[name].path}); give another name, change its "
                "strength with set_lora, or unload it first"
            )
        added = LoadedLora(path=path, scale=scale, is_merged=yes_or_no(merge, "merge"), deltas=read_lora(path))
        return self._change(transformer, {**self.loras, name: added}, added)

    def with_scale[N: Network[Any]](self, transformer: N, name: str, scale: float) -> tuple[N, "LoraSet"]:
        """Gives a file another strength. Raises ValueError if it is not in the set or ``scale`` is not finite."""
        scale = lora_scale(scale)
        changed = dataclasses.replace(self._find(name), scale=scale)
        return self._change(transformer, {**self.loras, name: changed}, changed)

    def without[N: Network[Any]](self, transformer: N, name: str) -> tuple[N, "LoraSet"]:
        """Removes a file; the weights are then bit for bit as if it had never been added.

        Raises:
            ValueError: It is not in the set.
        """
        removed = self._find(name)
        return self._change(transformer, {key: lora for key, lora in self.loras.items() if key != name}, removed)

    def _find(self, name: str) -> LoadedLora:
        if name not in self.loras:
            loaded = ", ".join(self.loras) or "none"
            raise ValueError(f"no LoRA named {name!r}; loaded: {loaded}{did_you_mean(str(name), self.loras)}")
        return self.loras[name]

    def _change[N: Network[Any]](
        self, transformer: N, loras: Mapping[str, LoadedLora], changed: LoadedLora
    ) -> tuple[N, "LoraSet"]:
        """Recomputes the parameters that ``changed`` affects, for a set with the files ``loras``."""
        separate = any(not lora.is_merged for lora in self.loras.values())
        # Adapters from elsewhere are refused by the functions that look up published names.
        plain = strip_lora(transformer.module) if separate else transformer.module
        if not changed.is_merged:
            return self._with_adapters(transformer, plain, loras)
        state = dict(nnx.to_flat_state(transformer.params))
        if any(state[parameter][...] is not array for parameter, array in self.merged.items()):
            raise ValueError(
                "the transformer was replaced while LoRAs were loaded; unload them before, or make a new pipeline"
            )
        touched = changes_of(changed.path, changed.deltas, plain, 1.0).keys()
        homes = {parameter: state[parameter][...].sharding for parameter in touched}
        originals = {p: self.originals[p] if p in self.originals else _kept(state[p][...]) for p in touched}
        changes: dict[ParamPath, list[Change]] = collections.defaultdict(list)
        holders: set[ParamPath] = set()
        for _, lora in sorted(loras.items()):
            if not lora.is_merged:
                continue
            for parameter, updates in changes_of(lora.path, lora.deltas, plain, lora.scale).items():
                holders.add(parameter)
                # With a scale of 0 the update is left out, so that even the sign of a zero is kept.
                if parameter in touched and lora.scale:
                    changes[parameter].extend(updates)
        source = " and ".join(str(lora.path) for lora in loras.values())
        arrays = merged_arrays({p: originals[p] for p in changes}, changes, source, homes=homes)
        arrays |= {p: jax.device_put(originals[p], homes[p]) for p in touched if p not in changes}
        transformer = with_arrays(transformer, arrays)
        kept = {p: array for p, array in {**self.originals, **originals}.items() if p in holders}
        merged = {p: array for p, array in {**self.merged, **arrays}.items() if p in holders}
        return transformer, LoraSet(loras=loras, originals=kept, merged=merged)

    def _with_adapters[N: Network[Any]](
        self, transformer: N, plain: ConfiguredModule, loras: Mapping[str, LoadedLora]
    ) -> tuple[N, "LoraSet"]:
        """Gives the transformer the adapters of those of ``loras`` that are not merged."""
        separate = [lora for _, lora in sorted(loras.items()) if not lora.is_merged]
        changes = [changes_of(lora.path, lora.deltas, plain, lora.scale) for lora in separate]
        source = " and ".join(str(lora.path) for lora in separate)
        graph, params = nnx.split(with_adapters(plain, changes, source))
        return dataclasses.replace(transformer, graph=graph, params=params), dataclasses.replace(self, loras=loras)


def _kept(array: Array) -> Array:
    """The array in host memory: itself if it is there already, otherwise a copy."""
    if array.sharding.memory_kind != "device" or next(iter(array.sharding.device_set)).platform == "cpu":
        return array
    return jax.device_put(array, array.sharding.with_memory_kind("pinned_host"))
