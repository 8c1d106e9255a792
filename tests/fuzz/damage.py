"""Ways to damage a checkpoint: each entry of a family is a name and a function that damages a folder in place."""

import json
import os
import pathlib
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

Damage = Callable[[pathlib.Path], Any]
Family = Iterator[tuple[str, Damage]]

JSON_FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "transformer/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer_config.json",
)
WEIGHTS = {
    "transformer": "transformer/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}
INDEX = "transformer/diffusion_pytorch_model.safetensors.index.json"
TOKENIZER = "tokenizer/tokenizer.json"

JUNK = ("null", "-1", "0.5", "1e30", "NaN", "-Infinity", "1e999", '"2"', "[]", "[[[1]]]", '{"a": 1}', "9" * 400)
"""JSON values, as text; at most a few are valid for any one key."""


def _change_json(file: str, change: Callable[[Any], Any]) -> Damage:
    def damage(folder: pathlib.Path) -> None:
        path = folder / file
        content = json.loads(path.read_text())
        path.write_text(json.dumps(change(content)))

    return damage


def _set(file: str, **values: Any) -> tuple[str, Damage]:
    return f"{file} {values}", _change_json(file, lambda content: content | values)


def _write(file: str, content: bytes) -> Damage:
    return lambda folder: (folder / file).write_bytes(content)


def junk_values(base: pathlib.Path, seed: int, number: int) -> Family:
    """One key of one file gets a value of the wrong type or out of range."""
    draw = random.Random(seed)
    for _ in range(number):
        file = draw.choice(JSON_FILES)
        key = draw.choice(sorted(json.loads((base / file).read_text())))
        junk = draw.choice(JUNK)

        def damage(folder: pathlib.Path, file: str = file, key: str = key, junk: str = junk) -> None:
            path = folder / file
            content = json.loads(path.read_text()) | {key: "JUNK"}
            path.write_text(json.dumps(content).replace('"JUNK"', junk))

        yield f"{file} {key}={junk:.20}", damage


def false_claims(base: pathlib.Path) -> Family:
    """Values of the right type that contradict what is built."""
    index, scheduler, transformer, vae, text = JSON_FILES[:5]
    yield _set(index, _class_name="WanPipeline")
    yield _set(index, _class_name="HeliosPipeline")
    yield _set(index, is_distilled="false")
    yield _set(index, is_distilled=False)
    for part in ("transformer", "vae", "scheduler", "text_encoder", "tokenizer"):
        yield _set(index, **{part: ["diffusers", "SomethingElse"]})
        yield _set(index, **{part: "HeliosTransformer3DModel"})
        yield _set(index, **{part: [None, None]})
    yield _set(index, scheduler=["diffusers", "HeliosScheduler"])
    for name in ("DDIMScheduler", "HeliosScheduler", 3, None):
        yield _set(scheduler, _class_name=name)
    for name in ("prediction_type", "scheduler_type", "time_shift_type", "solver_type"):
        yield _set(scheduler, **{name: "other"})
    for values in ([1, 0.6, 0.3, 0], [0, 0.6, 0.3, 1], [0, 0.3, 0.3, 1], [0, 1], [0.1, 0.3, 0.6, 1], [0, 0.3, 0.6, 2]):
        yield _set(scheduler, stage_range=values)
    for stages in (0, 1, 2, 4, 100, 3.0, True):
        yield _set(scheduler, stages=stages)
    for values in ({"gamma": 0.5}, {"gamma": -0.1}, {"shift": 3.0}, {"predict_x0": 1}, {"thresholding": True}):
        yield _set(scheduler, **values)
    for values in ({"base_image_seq_len": 4096}, {"max_image_seq_len": 1}, {"num_train_timesteps": 0}):
        yield _set(scheduler, **values)
    for values in (
        {"_class_name": "WanTransformer3DModel"},
        {"qk_norm": "layer_norm"},
        {"added_kv_proj_dim": 5120},
        {"rope_dim": [32, 0, 0]},
        {"rope_dim": [11, 11, 10]},
        {"rope_dim": [12, 10]},
        {"eps": 1e9},
        {"eps": 0},
        {"eps": -1e-6},
        {"num_layers": 1_000_000},
        {"num_layers": 1000},
        {"num_layers": 1},
        {"num_attention_heads": 1_000_000},
        {"ffn_dim": 999_999, "num_layers": 1000},
        {"text_dim": 10**6},
        {"patch_size": [1, 1, 1]},
        {"patch_size": [2, 2, 2]},
        {"patch_size": "122"},
        {"in_channels": 8},
        {"out_channels": 32},
        {"out_channels": 0},
        {"is_amplify_history": True},
        {"cross_attn_norm": False},
        {"has_multi_term_memory_patch": False},
        {"guidance_cross_attn": 1},
    ):
        yield _set(transformer, **values)
    mean = json.loads((base / vae).read_text())["latents_mean"]
    for values in (
        {"_class_name": "AutoencoderKL"},
        {"latents_std": [0.0] * 16},
        {"latents_std": [-1.0] * 16},
        {"latents_std": [1.0] * 15},
        {"latents_mean": [*mean[:-1], "0"]},
        {"latents_mean": mean * 2},
        {"z_dim": 8},
        {"z_dim": 8, "latents_mean": mean[:8], "latents_std": [1.0] * 8},
        {"dim_mult": [1, 2, 2]},
        {"dim_mult": []},
        {"dim_mult": [1] * 100, "temperal_downsample": [False] * 99},
        {"base_dim": 10**9},
        {"base_dim": 16},
        {"num_res_blocks": 10**6},
        {"temperal_downsample": [0, 1, 1]},
        {"temperal_downsample": [True, True, False]},
        {"scale_factor_spatial": 16},
        {"scale_factor_temporal": 8},
        {"is_residual": True},
        {"patch_size": 2},
        {"in_channels": 4},
        {"attn_scales": [1.0]},
    ):
        yield _set(vae, **values)
    for values in (
        {"model_type": "t5"},
        {"vocab_size": 10**12},
        {"vocab_size": 10**7},
        {"vocab_size": 50},
        {"d_model": 64},
        {"num_heads": 3},
        {"relative_attention_max_distance": 1},
        {"relative_attention_num_buckets": 0},
        {"pad_token_id": 3},
        {"eos_token_id": 10**6},
        {"feed_forward_proj": "relu"},
        {"layer_norm_epsilon": 1.0},
    ):
        yield _set(text, **values)


def broken_json(seed: int) -> Family:
    """Files of settings that are no JSON objects, or no files."""
    draw = random.Random(seed)
    contents = {
        "empty": b"",
        "null": b"null",
        "number": b"3",
        "list": b"[]",
        "not UTF-8": b'{"a": "\xff\xfe"}',
        "byte order mark": b'\xef\xbb\xbf{"a": 1}',
        "twice": b'{"_class_name": "a", "_class_name": "b"}',
        "deep": b'{"a": ' * 100_000,
        "deep list": b"[" * 100_000 + b"]" * 100_000,
        "zeros": bytes(100),
        "random": draw.randbytes(200),
    }
    for file in JSON_FILES:
        for name in draw.sample(sorted(contents), 6):
            yield f"{file} {name}", _write(file, contents[name])
        share = draw.random() * 0.9
        yield (
            f"{file} cut at {share:.2f}",
            lambda folder, file=file, share=share: os.truncate(
                folder / file, int((folder / file).stat().st_size * share)
            ),
        )
        yield f"{file} folder", lambda folder, file=file: _replace(folder / file, os.mkdir)
        yield f"{file} pipe", lambda folder, file=file: _replace(folder / file, os.mkfifo)
        if file != "tokenizer/tokenizer_config.json":  # which is optional
            yield f"{file} missing", lambda folder, file=file: (folder / file).unlink()


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
    shutil.copy(source, target)


def _cut(path: pathlib.Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def _replace(path: pathlib.Path, make: Callable[[pathlib.Path], None]) -> None:
    path.unlink()
    make(path)


def missing_parts() -> Family:
    """Parts that are gone, renamed or swapped."""
    for part in ("transformer", "vae", "text_encoder", "tokenizer", "scheduler"):
        yield f"no {part}", lambda folder, part=part: shutil.rmtree(folder / part)
        yield f"empty {part}", lambda folder, part=part: [path.unlink() for path in (folder / part).iterdir()]
    for part, file in WEIGHTS.items():
        yield f"no weights of {part}", lambda folder, file=file: (folder / file).unlink()
        yield (
            f"pickled weights of {part}",
            lambda folder, file=file: (folder / file).rename((folder / file).with_suffix(".bin")),
        )
        yield f"weights of {part} folder", lambda folder, file=file: _replace(folder / file, os.mkdir)
        yield f"weights of {part} pipe", lambda folder, file=file: _replace(folder / file, os.mkfifo)
        yield f"weights of {part} loop", lambda folder, file=file: _replace(folder / file, lambda p: p.symlink_to(p))
    for one, two in (("transformer", "vae"), ("vae", "text_encoder"), ("text_encoder", "transformer")):
        yield (
            f"{one} for {two}",
            lambda folder, one=one, two=two: shutil.copy(folder / WEIGHTS[one], folder / WEIGHTS[two]),
        )
    yield "everything gone", lambda folder: [shutil.rmtree(path) for path in folder.iterdir() if path.is_dir()] and None


def _header(path: pathlib.Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def _rewrite(file: str, change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Changes the header of a safetensors file, and leaves its data as they are."""

    def damage(folder: pathlib.Path) -> None:
        header, data = _header(folder / file)
        changed = change(header)
        text = json.dumps(header if changed is None else changed).encode()
        (folder / file).write_bytes(struct.pack("<Q", len(text)) + text + data)

    return damage


def broken_weights(seed: int, number: int) -> Family:
    """Damaged headers, lengths and ends of safetensors files."""
    draw = random.Random(seed)

    def any_tensor(header: dict[str, Any], salt: int) -> dict[str, Any]:
        names = sorted(name for name in header if name != "__metadata__")
        return header[random.Random(salt).choice(names)]

    def changes(salt: int) -> dict[str, Callable[[dict[str, Any]], Any]]:
        return {
            "dtype": lambda header: any_tensor(header, salt).update(dtype="I64"),
            "dtype unknown": lambda header: any_tensor(header, salt).update(dtype="F31"),
            "shape": lambda header: any_tensor(header, salt).update(shape=[7, 7]),
            "negative shape": lambda header: any_tensor(header, salt).update(shape=[-1]),
            "huge shape": lambda header: any_tensor(header, salt).update(shape=[2**62, 4]),
            "offsets": lambda header: any_tensor(header, salt).update(data_offsets=[0, 4]),
            "offsets reversed": lambda header: any_tensor(header, salt).update(data_offsets=[8, 0]),
            "offsets far": lambda header: any_tensor(header, salt).update(data_offsets=[2**60, 2**60 + 4]),
            "no offsets": lambda header: any_tensor(header, salt).pop("data_offsets"),
            "list": lambda header: list(header),
            "null": lambda header: "null",
            "metadata": lambda header: header.update(__metadata__={"format": 3}),
            "extra": lambda header: header.update(extra={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}),
        }

    for _ in range(number):
        part, file = draw.choice(sorted(WEIGHTS.items()))
        kind = draw.choice(["length", "cut", "append", "bytes", *changes(0)])
        salt = draw.randrange(2**32)
        if kind == "length":
            size = draw.choice([0, 1, 2**16, 2**40, 2**63, 2**64 - 1])

            def damage(folder: pathlib.Path, file: str = file, size: int = size) -> None:
                with (folder / file).open("r+b") as stream:
                    stream.write(struct.pack("<Q", size))

        elif kind == "cut":
            share = draw.random()

            def damage(folder: pathlib.Path, file: str = file, share: float = share) -> None:
                _cut(folder / file, share)

        elif kind == "append":

            def damage(folder: pathlib.Path, file: str = file) -> None:
                with (folder / file).open("ab") as stream:
                    stream.write(b"more")

        elif kind == "bytes":

            def damage(folder: pathlib.Path, file: str = file, salt: int = salt) -> None:
                raw = bytearray((folder / file).read_bytes())
                position = 8 + random.Random(salt).randrange(1000)
                raw[position] ^= 0x80
                (folder / file).write_bytes(raw)

        else:
            damage = _rewrite(file, changes(salt)[kind])
        yield f"{part} {kind} {salt}", damage


def wrong_tensors(seed: int, number: int) -> Family:
    """Complete files with other tensors in them, or with values that are not finite."""
    draw = random.Random(seed)
    for _ in range(number):
        part, file = draw.choice(sorted(WEIGHTS.items()))
        kind = draw.choice(["drop", "rename", "transpose", "add", "flat", "half", "nan", "inf", "3e38"])
        salt = draw.randrange(2**32)

        def damage(folder: pathlib.Path, file: str = file, kind: str = kind, salt: int = salt) -> None:
            tensors = load_file(folder / file)
            dice = random.Random(salt)
            # The embedding is left alone: rows of other tokens do not matter.
            name = dice.choice(sorted(name for name in tensors if tensors[name].size > 1 and name != "shared.weight"))
            tensor = tensors[name]
            if kind in ("drop", "rename"):
                del tensors[name]
            if kind == "rename":
                tensors[f"model.{name}"] = tensor
            if kind == "transpose":
                tensors[name] = np.ascontiguousarray(np.moveaxis(tensor, 0, -1)[..., :-1])
            if kind == "add":
                tensors[f"{name}_2"] = tensor.copy()
            if kind == "flat":
                tensors[name] = tensor.reshape(1, -1)
            if kind == "half":
                tensors[name] = tensor.astype(np.int16)
            if kind in ("nan", "inf", "3e38"):
                tensor.flat[dice.randrange(tensor.size)] = float(kind)
            save_file(tensors, folder / file)

        yield f"{part} {kind} {salt}", damage


def shard(folder: pathlib.Path) -> None:
    """Splits the transformer into two files with an index, as large checkpoints have."""
    path = folder / WEIGHTS["transformer"]
    tensors = load_file(path)
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"diffusion_pytorch_model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, path.parent / file)
        weight_map |= dict.fromkeys(part, file)
    path.unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def broken_index(seed: int) -> Family:
    """Damaged indices of a sharded checkpoint, and files that contradict them."""
    draw = random.Random(seed)
    first, second = (f"diffusion_pytorch_model-{i:05d}-of-00002.safetensors" for i in (1, 2))
    for content in (b"", b"text", b"null", b"[]", b"{}", b'{"weight_map": null}', b'{"weight_map": {}}', b"\xff"):
        yield f"index {content!r}", _write(INDEX, content)
    for value in (
        "/etc/passwd",
        "../vae/diffusion_pytorch_model.safetensors",
        "",
        ".",
        "..",
        "a\x00b",
        "a\nb",
        None,
        3,
    ):
        name = draw.randrange(10)

        def point(content: Any, value: Any = value, name: int = name) -> Any:
            tensor = sorted(content["weight_map"])[name]
            return content | {"weight_map": content["weight_map"] | {tensor: value}}

        yield f"index points to {value!r}", _change_json(INDEX, point)
    yield "index names a list", _change_json(INDEX, lambda content: content | {"weight_map": [first, second]})
    for shift in range(3):

        def move(content: Any, shift: int = shift) -> Any:
            tensor = sorted(content["weight_map"])[2 * shift]
            return content | {"weight_map": content["weight_map"] | {tensor: second}}

        yield f"index names the wrong shard {shift}", _change_json(INDEX, move)

    def forget(content: Any) -> Any:
        return content | {"weight_map": dict(list(content["weight_map"].items())[:1])}

    yield "index forgets", _change_json(INDEX, forget)
    yield "no index, one shard", lambda folder: (folder / INDEX).unlink() or (folder / "transformer" / second).unlink()
    for gone in (first, second):
        yield f"no {gone}", lambda folder, gone=gone: (folder / "transformer" / gone).unlink()

    def copied(source: str, target: str) -> Damage:
        return lambda folder: shutil.copy(folder / "transformer" / source, folder / "transformer" / target)

    yield "a shard twice", copied(first, second)
    yield "a stray copy", copied(first, "model.safetensors")
    yield "a second index", copied(INDEX.split("/")[1], "other.safetensors.index.json")
    yield (
        "a stray copy without index",
        lambda folder: copied(first, "model.safetensors")(folder) or (folder / INDEX).unlink(),
    )


def broken_tokenizer(seed: int) -> Family:
    """Damaged tokenizers."""
    draw = random.Random(seed)
    for content in (b"", b"null", b"[]", b"{}", b"text", b"\xff" * 9, b'{"version": "1.0"}', b"[" * 10**5):
        yield f"tokenizer {content[:20]!r}", _write(TOKENIZER, content)
    for _ in range(10):
        share = draw.random()
        yield (
            f"tokenizer cut at {share:.3f}",
            lambda folder, share=share: _cut(folder / TOKENIZER, share),
        )
    for key in ("model", "added_tokens", "version"):
        for value in (None, 3, "x", []):
            if (key, value) == ("added_tokens", []):  # Their pieces are in the vocabulary as well.
                continue
            yield (
                f"tokenizer {key}={value!r}",
                _change_json(TOKENIZER, lambda c, key=key, value=value: c | {key: value}),
            )
    token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}

    def far(content: Any) -> Any:
        more = [token | {"id": 100 + i, "content": f"<extra{i}>"} for i in range(500)]
        return content | {"added_tokens": content["added_tokens"] + more}

    yield "tokenizer with added tokens beyond the embeddings", _change_json(TOKENIZER, far)
    for piece in ("<pad>", "</s>"):

        def without(content: Any, piece: str = piece) -> Any:
            text = json.dumps(content).replace(json.dumps(piece), '"<other>"')
            return json.loads(text)

        yield f"tokenizer without {piece}", _change_json(TOKENIZER, without)
    yield "no tokenizer.json", lambda folder: (folder / TOKENIZER).unlink()
    yield "tokenizer.json folder", lambda folder: _replace(folder / TOKENIZER, os.mkdir)
