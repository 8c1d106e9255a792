"""Inspects and converts checkpoints and merges LoRA files, without a GPU.

    helios-convert inspect BestWishYsh/Helios-Distilled        shows its contents, from the files' headers alone
    helios-convert to-orbax SRC DST --dtype=bfloat16           published layout -> the layout that loads fastest
    helios-convert to-diffusers SRC DST                        and back, byte for byte
    helios-convert merge-lora SRC LORA DST --scale=0.8         writes a checkpoint with the LoRA merged in

SRC is a folder in either layout, a hub id, or helios-tiny, which comes with the package. Existing files are never
overwritten. Only one network at a time is held in memory.
"""

import argparse
import collections
import dataclasses
import math
import os
import shutil
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helios_jax.arguments import Parser, finite, path
from helios_jax.cli import run_interruptible, run_program

if TYPE_CHECKING:
    import numpy as np

    from helios_jax.checkpoints.weights import Layout
    from helios_jax.models.network import ConfiguredModule

_LEAVES = "nothing is left of an unfinished checkpoint"

NETWORKS = ("transformer", "text_encoder", "vae")

Edit = Callable[["ConfiguredModule"], "ConfiguredModule"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What configuration and headers say about one network.

    Attributes:
        layout: Its layout on disk.
        tensors: Number of stored tensors.
        parameters: Number of parameters by dtype.
        config: Its ``config.json``.
    """

    layout: "Layout"
    tensors: int
    parameters: Mapping["np.dtype", int]
    config: Mapping[str, Any]

    @property
    def bytes(self) -> int:
        """Size of the weights."""
        return sum(count * dtype.itemsize for dtype, count in self.parameters.items())


def summarise(source: str) -> dict[str, Summary]:
    """Reads the configuration and the headers of every network of a checkpoint, but no weights.

    Raises:
        FileNotFoundError: The checkpoint or a part of it is missing.
        ValueError: A file is damaged.
    """
    from helios_jax.checkpoints.components import read_json
    from helios_jax.checkpoints.hub import local_folder, remote_tensors
    from helios_jax.checkpoints.orbax import stored_parameters
    from helios_jax.checkpoints.sources import folder_of
    from helios_jax.checkpoints.tensor_files import TensorFolder
    from helios_jax.checkpoints.weights import layout_of

    folder = local_folder(source, weights=False)
    summaries = {}
    for name in _networks(folder):
        inner = folder / name
        layout = layout_of(inner)
        if layout == "orbax":
            stored = stored_parameters(inner)
        elif folder_of(source) is not None:
            with TensorFolder(inner) as files:
                stored = files.tensors
        else:
            stored = remote_tensors(source, name)
        parameters: collections.Counter[np.dtype] = collections.Counter()
        for array in stored.values():
            parameters[array.dtype] += math.prod(array.shape)
        config = read_json(inner / "config.json")
        summaries[name] = Summary(layout=layout, tensors=len(stored), parameters=parameters, config=config)
    return summaries


def convert(
    source: str,
    target: Path,
    layout: "Layout | None" = None,
    *,
    dtype: str | None = None,
    edits: Mapping[str, Edit] | None = None,
) -> None:
    """Writes a checkpoint again, possibly changed, and prints a line for every network.

    Args:
        source: Folder in either layout, or hub id.
        target: Folder to write; it must not exist or be empty. It gets this name only when it is complete.
        layout: Layout of the result; ``None``: that of each network in ``source``.
        dtype: Dtype of the result, except for what is published as fp32-only; ``None`` keeps every stored dtype.
        edits: Changes to networks, by name, applied at the stored precision.

    Raises:
        FileNotFoundError: The checkpoint or a part of it is missing.
        FileExistsError: ``target`` is not empty.
        NotADirectoryError: A parent of ``target`` is a file.
        ValueError: Something in it is not supported or does not fit; ``target`` is inside it; weights that are not
            finite, in the checkpoint or in ``dtype``.
        OSError: The disk is full. The partial result is removed.
    """
    from helios_jax.checkpoints.hub import local_folder
    from helios_jax.checkpoints.new_folder import check_new_folder, new_folder
    from helios_jax.checkpoints.weights import check_weights, layout_of, load_weights, save_weights

    target = check_new_folder(target)  # Checked before a download.
    folder = local_folder(source)
    check_new_folder(target, folder)
    networks = _networks(folder)
    for name in networks:  # All headers are checked before the first weights are read.
        check_weights(folder, name)
    edits = edits or {}
    with new_folder(target) as unfinished:
        for name in networks:
            start = time.monotonic()
            network = load_weights(folder, name, dtype=None if name in edits else dtype)
            if name in edits:
                network = _cast(name, edits[name](network), dtype)
            _check_finite(folder / name, network, dtype)
            save_weights(network, unfinished, name, layout or layout_of(folder / name))
            print(f"{name}: {_describe(network)}, {time.monotonic() - start:.1f} s", flush=True)
        for name in ("tokenizer", "scheduler"):
            if (folder / name).is_dir():
                shutil.copytree(folder / name, unfinished / name)
        for name in ("sampling.json", "model_index.json"):
            if (folder / name).is_file():
                shutil.copy(folder / name, unfinished / name)
    print(f"wrote {target}", flush=True)


def merge_lora(source: str, lora: Path, target: Path, *, scale: float = 1.0, dtype: str | None = None) -> None:
    """Writes a checkpoint, in its own layout, with a LoRA file merged into its transformer.

    The merge runs at the stored precision and is rounded to ``dtype`` afterwards. See ``convert`` and
    ``checkpoints.lora_merge.merge_lora_file`` for errors.
    """
    from helios_jax.checkpoints.components import read_json
    from helios_jax.checkpoints.hub import local_folder
    from helios_jax.checkpoints.lora_argument import lora_scale
    from helios_jax.checkpoints.lora_merge import check_lora, merge_lora_file
    from helios_jax.checkpoints.new_folder import check_new_folder
    from helios_jax.config import TransformerConfig
    from helios_jax.models.network import Network

    # Everything is checked before anything large is downloaded or read.
    lora_scale(scale)
    target = check_new_folder(target)
    folder = local_folder(source, weights=False)
    _networks(folder)
    check_lora(lora, TransformerConfig.from_diffusers(read_json(folder / "transformer" / "config.json")))

    def merge(transformer: "ConfiguredModule") -> "ConfiguredModule":
        return merge_lora_file(Network.of(transformer), lora, scale, donate=True).module

    convert(source, target, dtype=dtype, edits={"transformer": merge})


def _networks(folder: Path) -> list[str]:
    """The networks of a checkpoint. Raises FileNotFoundError when it is not one."""
    found = [name for name in NETWORKS if (folder / name).is_dir()]
    if not found or not (folder / "model_index.json").is_file():
        inside = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise FileNotFoundError(
            f"{folder} is not a (finished) checkpoint: model_index.json and {', '.join(NETWORKS)} are needed, "
            f"found {inside}"
        )
    return found


def _cast(name: str, network: "ConfiguredModule", dtype: str | None) -> "ConfiguredModule":
    """The network in another dtype, except for what is published as fp32-only; ``None``: as it is."""
    if dtype is None:
        return network
    from flax import nnx

    from helios_jax.checkpoints.components import find_component, with_parameters

    abstract = find_component(name).abstract(network.config, dtype)
    wanted = dict(nnx.to_flat_state(nnx.state(abstract, nnx.Param)))
    stored = nnx.to_flat_state(nnx.state(network, nnx.Param))
    return with_parameters(abstract, {path: array[...].astype(wanted[path].dtype) for path, array in stored})


def _check_finite(folder: Path, network: "ConfiguredModule", dtype: str | None) -> None:
    """Raises ValueError if weights are not finite, either as stored or because they overflow in ``dtype``."""
    import numpy as np
    from flax import nnx

    from helios_jax.checkpoints.components import raise_problems

    wrong = [
        f"{'.'.join(map(str, path))} ({count:,} of {variable[...].size:,} values)"
        for path, variable in nnx.to_flat_state(nnx.state(network, nnx.Param))
        if (count := variable[...].size - np.count_nonzero(np.isfinite(np.asarray(variable[...]))))
    ]
    cause = "" if dtype is None else f", or too large for {dtype}"
    raise_problems(f"{folder} has weights that are not finite{cause}:", {"parameters": wrong})


def _describe(network: "ConfiguredModule") -> str:
    import jax
    from flax import nnx

    from helios_jax.parallel.devices import bytes_in_words

    arrays = jax.tree.leaves(nnx.state(network, nnx.Param))
    size = sum(array.nbytes for array in arrays)
    return f"{sum(array.size for array in arrays):,} parameters in {len(arrays)} arrays, {bytes_in_words(size)}"


def _print_summary(source: str) -> None:
    from helios_jax.checkpoints.components import read_json
    from helios_jax.checkpoints.hub import local_folder
    from helios_jax.parallel.devices import bytes_in_words

    summaries = summarise(source)
    folder = local_folder(source, weights=False)
    rows = [("network", "layout", "tensors", "parameters", "size", "dtypes")]
    for name, summary in summaries.items():
        count, dtypes = f"{sum(summary.parameters.values()):,}", " + ".join(map(str, summary.parameters))
        rows.append((name, summary.layout, str(summary.tensors), count, bytes_in_words(summary.bytes), dtypes))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:{side}{width}}" for cell, side, width in zip(row, "<<>>><", widths, strict=True))
        print("  ".join(cells).rstrip())
    settings = {
        "pipeline": read_json(folder / "model_index.json"),
        "scheduler": read_json(folder / "scheduler" / "scheduler_config.json"),
        **{name: summary.config for name, summary in summaries.items()},
    }
    for name, config in settings.items():
        # Version numbers and class references say nothing about the model.
        values = (f"{key}={value}" for key, value in config.items() if key[0] != "_" and not _is_reference(value))
        text = " ".join([f"{name}:", *filter(None, [config.get("_class_name")]), *values])
        print(textwrap.fill(text, 110, subsequent_indent="    ", break_long_words=False))


def _is_reference(value: Any) -> bool:
    return isinstance(value, list) and (not value or value[0] is None or isinstance(value[0], str))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line; ``argv[0]`` is the program."""
    parser = Parser(prog="helios-convert", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, description: str, *positional: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=description, description=description)
        for argument in positional:
            kind = str if argument == "SRC" else path(argument)
            command.add_argument(argument.lower(), metavar=argument, help=_HELP[argument], type=kind)
        return command

    def add_dtype(command: argparse.ArgumentParser) -> None:
        command.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help=_HELP["dtype"])

    add("inspect", "Shows networks, sizes, dtypes and settings; reads headers only.", "SRC")
    add_dtype(add("to-orbax", "Writes the checkpoint in Orbax's layout.", "SRC", "DST"))
    add_dtype(add("to-diffusers", "Writes the checkpoint in the published layout.", "SRC", "DST"))
    merge = add("merge-lora", "Writes the checkpoint with a LoRA file merged in.", "SRC", "LORA", "DST")
    merge.add_argument("--scale", type=finite("--scale"), default=1.0, help="strength of the LoRA (default 1)")
    add_dtype(merge)
    return parser.parse_args(argv[1:])


_HELP = {
    "SRC": "folder of a checkpoint in either layout, hub id, or helios-tiny",
    "DST": "folder to write; it must not exist or be empty",
    "LORA": "safetensors file with diffusers, PEFT, Wan or Kohya names",
    "dtype": "dtype of the result; what is published as fp32-only stays fp32 (default: every stored dtype)",
}


def main(args: argparse.Namespace) -> int:
    """Runs one command; returns the exit code."""
    # All work is done on the host, where larger networks fit than on a GPU. Set before JAX is imported.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

    def work() -> None:
        match args.command:
            case "inspect":
                _print_summary(args.src)
            case "to-orbax":
                convert(args.src, args.dst, "orbax", dtype=args.dtype)
            case "to-diffusers":
                convert(args.src, args.dst, "diffusers", dtype=args.dtype)
            case "merge-lora":
                merge_lora(args.src, args.lora, args.dst, scale=args.scale, dtype=args.dtype)

    return run_interruptible("helios-convert", lambda check: work(), leaves=_LEAVES)


def run() -> None:
    """Entry point of ``helios-convert``."""
    run_program("helios-convert", main, parse, leaves=_LEAVES)


if __name__ == "__main__":
    run()
