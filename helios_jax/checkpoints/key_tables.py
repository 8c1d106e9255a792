"""How the published names and layouts of tensors map to ours.

Our modules mirror the published (diffusers, transformers) names, so a component needs only a short table of
``(pattern over our dotted path, published name, layout)``: the first pattern that matches wins. Layers that
we stack on a leading axis are one path here and one published tensor per layer; projections that we fuse lie side by
side on the last axis of one parameter and have one published name each.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from flax import nnx

from helios_jax.typing import AnyArray

ParamPath = tuple[Any, ...]
"""Path of a parameter in an nnx state: attribute names and list indices."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """From a published tensor to ours: drop axes of size one, then permute the rest.

    Attributes:
        drop: Published axes of size one that we do not keep.
        perm: Permutation of the remaining axes; empty for none.
    """

    drop: tuple[int, ...] = ()
    perm: tuple[int, ...] = ()

    def to_ours(self, tensor: AnyArray) -> AnyArray:
        """Published tensor -> our array."""
        kept = tensor.reshape([n for axis, n in enumerate(tensor.shape) if axis not in self.drop])
        return kept.transpose(self.perm) if self.perm else kept

    def to_published(self, array: np.ndarray) -> np.ndarray:
        """Our array -> published tensor, contiguous."""
        kept = array.transpose(np.argsort(self.perm)) if self.perm else array
        return np.ascontiguousarray(np.expand_dims(kept, self.drop))

    def published_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the published tensor for an array of ours of shape ``shape``."""
        return tuple(1 if size is None else size for size in self.published_order(shape))

    def published_order[T](self, spec: Sequence[T]) -> list[T | None]:
        """Reorders one entry per axis of ours (a slice, a mesh axis) to published axes; dropped ones get None."""
        ranked: list[T | None] = [spec[i] for i in np.argsort(self.perm)] if self.perm else list(spec)
        for axis in self.drop:
            ranked.insert(axis, None)
        return ranked


AS_IS = Layout()
LINEAR = Layout(perm=(1, 0))
CONV_2D = Layout(perm=(2, 3, 1, 0))
CONV_3D = Layout(perm=(2, 3, 4, 1, 0))
CONV_TIME = Layout(drop=(3, 4), perm=(2, 1, 0))
POINTWISE_2D = Layout(drop=(2, 3), perm=(1, 0))
POINTWISE_3D = Layout(drop=(2, 3, 4), perm=(1, 0))
CHANNELS_2D = Layout(drop=(1, 2))
CHANNELS_3D = Layout(drop=(1, 2, 3))
TABLE = Layout(drop=(0,))

Rules = tuple[tuple[str, str | tuple[str, ...], Layout], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyTable:
    """The rules of one component.

    Attributes:
        rules: ``(pattern, published name, layout)``; patterns are matched against the whole dotted path. Several
            names are equal parts of the parameter's last axis.
        stacked: Path prefix whose parameters carry a leading layer axis; the layer's number follows the
            prefix in published names.
        aliases: Other published names, pattern -> name, that mean the same tensor.
        ignored: Patterns of published tensors that we do not need.
    """

    rules: Rules
    stacked: str | None = None
    aliases: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()

    def canonical(self, name: str) -> str | None:
        """The canonical published name of ``name``; ``None`` when the tensor is to be ignored."""
        if any(re.fullmatch(pattern, name) for pattern in self.ignored):
            return None
        for pattern, replacement in self.aliases:
            if re.fullmatch(pattern, name):
                return re.sub(pattern, replacement, name)
        return name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One published tensor and its place in our parameters.

    Attributes:
        path: Path of the parameter in the nnx state.
        layer: Index on the parameter's leading axis; ``None`` when the parameter is not stacked.
        layout: How the tensor is laid out.
        shape: Published shape.
        columns: Where the tensor lies on the parameter's last axis; ``None``: it fills the axis.
    """

    path: ParamPath
    layer: int | None
    layout: Layout
    shape: tuple[int, ...]
    columns: slice | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the tensor is the whole parameter."""
        return self.layer is None and self.columns is None

    def of(self, parameter: AnyArray) -> AnyArray:
        """The tensor's part of its parameter, in our layout."""
        part = parameter if self.layer is None else parameter[self.layer]
        return part if self.columns is None else part[..., self.columns]


TRANSFORMER = KeyTable(
    stacked="blocks",
    rules=(
        (r"(patch_\w+)\.kernel", r"\1.weight", CONV_3D),
        (r"(.*)\.ffn\.proj_in\.kernel", r"\1.ffn.net.0.proj.weight", LINEAR),
        (r"(.*)\.ffn\.proj_in\.bias", r"\1.ffn.net.0.proj.bias", AS_IS),
        (r"(.*)\.ffn\.proj_out\.kernel", r"\1.ffn.net.2.weight", LINEAR),
        (r"(.*)\.ffn\.proj_out\.bias", r"\1.ffn.net.2.bias", AS_IS),
        (r"(.*)\.to_qkv\.kernel", (r"\1.to_q.weight", r"\1.to_k.weight", r"\1.to_v.weight"), LINEAR),
        (r"(.*)\.to_qkv\.bias", (r"\1.to_q.bias", r"\1.to_k.bias", r"\1.to_v.bias"), AS_IS),
        (r"(.*)\.to_out\.kernel", r"\1.to_out.0.weight", LINEAR),
        (r"(.*)\.to_out\.bias", r"\1.to_out.0.bias", AS_IS),
        (r"(.*scale_shift_table)", r"\1", TABLE),
        (r"(.*)\.kernel", r"\1.weight", LINEAR),
        (r"(.*)\.scale", r"\1.weight", AS_IS),
        (r"(.*)", r"\1", AS_IS),
    ),
    # Early uploads had the output table at the top level.
    aliases=((r"scale_shift_table", "norm_out.scale_shift_table"),),
    ignored=(r".*norm_added_q.*",),
)

VAE = KeyTable(
    rules=(
        (r"(.*)\.resample\.kernel", r"\1.resample.1.weight", CONV_2D),
        (r"(.*)\.resample\.bias", r"\1.resample.1.bias", AS_IS),
        (r"(.*)\.time_conv\.kernel", r"\1.time_conv.weight", CONV_TIME),
        (r"(.*\.(?:to_qkv|proj))\.kernel", r"\1.weight", POINTWISE_2D),
        (r"(.*(?:quant_conv|conv_shortcut))\.kernel", r"\1.weight", POINTWISE_3D),
        (r"(.*)\.kernel", r"\1.weight", CONV_3D),
        (r"(.*\.norm\.gamma)", r"\1", CHANNELS_2D),
        (r"(.*\.gamma)", r"\1", CHANNELS_3D),
        (r"(.*)", r"\1", AS_IS),
    ),
)

TEXT_ENCODER = KeyTable(
    stacked="encoder.block",
    rules=(
        (r"shared\.embedding", "shared.weight", AS_IS),
        (r"(.*)\.relative_attention_bias\.embedding", r"\1.relative_attention_bias.weight", AS_IS),
        (r"(.*)\.kernel", r"\1.weight", LINEAR),
        (r"(.*)\.scale", r"\1.weight", AS_IS),
    ),
    # The embedding is published once, as shared.weight, with a config that says it is not tied, so some readers
    # leave the encoder's own table at zero (grey videos). If there is a second copy, it is the same.
    ignored=(r"encoder\.embed_tokens\.weight",),
)


def published_entries(module: nnx.Module, table: KeyTable) -> dict[str, Entry]:
    """Every published tensor of ``module`` by name.

    Args:
        module: The module, concrete or abstract (``nnx.eval_shape``).
        table: The key table of its component.

    Returns:
        Published name -> entry, stacked layers expanded.

    Raises:
        ValueError: The module carries adapters, which have no place in a published checkpoint.
    """
    if any("lora_a" in path for path, _ in nnx.to_flat_state(nnx.state(module, nnx.Param))):
        raise ValueError(
            "the network carries LoRA adapters: fold them in with merge_lora, or drop them with strip_lora"
        )
    return dict(_entries(module, table))


def _entries(module: nnx.Module, table: KeyTable) -> Iterator[tuple[str, Entry]]:
    for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        dotted = ".".join(map(str, path))
        names, layout = _published_names(dotted, table.rules)
        stacked = table.stacked is not None and dotted.startswith(table.stacked + ".")
        *rest, width = variable.shape[1:] if stacked else variable.shape
        size = width // len(names)
        for part, name in enumerate(names):
            columns = slice(part * size, (part + 1) * size) if len(names) > 1 else None
            entry = Entry(
                path=path, layer=None, layout=layout, shape=layout.published_shape((*rest, size)), columns=columns
            )
            if not stacked:
                yield name, entry
                continue
            for layer in range(variable.shape[0]):
                published = f"{table.stacked}.{layer}{name.removeprefix(str(table.stacked))}"
                yield published, dataclasses.replace(entry, layer=layer)


def _published_names(dotted: str, rules: Rules) -> tuple[list[str], Layout]:
    for pattern, names, layout in rules:
        if re.fullmatch(pattern, dotted):
            names = (names,) if isinstance(names, str) else names
            return [re.sub(f"^{pattern}$", name, dotted) for name in names], layout
    raise KeyError(f"no rule of the key table matches the parameter {dotted!r}")
