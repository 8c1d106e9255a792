"""Records LoRA files and what diffusers makes of them.

Run in an environment with ``torch==2.13.0 diffusers==0.42.1 transformers ftfy peft`` (CPU builds), after
``record_transformer.py``:

    python tests/parity/record_lora.py

Writes ``tests/parity/data/lora``, for the transformer of ``data/transformer/published``:

    diffusers.safetensors   written by ``save_lora_weights``: every kind of layer, ranks and alphas that differ by layer
    wan.safetensors         the names of Wan2.1, with alphas and bias updates
    kohya.safetensors       the names of Kohya's trainers, with alphas
    <name>.npz              weights after ``fuse_lora``; for "diffusers" also the output for the recorded inputs
"""

import pathlib
import shutil

import numpy as np
import torch
from diffusers import HeliosPipeline, HeliosScheduler, HeliosTransformer3DModel
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file

DATA = pathlib.Path(__file__).parent / "data"
OUT = DATA / "lora"
BASE = DATA / "transformer" / "published"
SCALE = 0.7

ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}


def base_pipeline() -> HeliosPipeline:
    transformer = HeliosTransformer3DModel.from_pretrained(BASE / "transformer").eval()
    parts = {"tokenizer": None, "text_encoder": None, "vae": None, "scheduler": HeliosScheduler()}
    return HeliosPipeline(transformer=transformer, **parts)


def draw(*shape: int, generator: torch.Generator) -> torch.Tensor:
    """Factors whose product is about as large as the weights."""
    return torch.randn(shape, generator=generator) / 2


def record_diffusers(generator: torch.Generator) -> None:
    pipe = base_pipeline()
    layers = [name for name, module in pipe.transformer.named_modules() if isinstance(module, torch.nn.Linear)]
    config = LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=[*layers, "patch_embedding", "patch_short", "patch_mid", "patch_long"],
        rank_pattern={"blocks.1.attn1.to_q": 6, "patch_long": 2},
        alpha_pattern={"attn2.to_k": 2, "patch_short": 7},
    )
    pipe.transformer.add_adapter(config)
    for name, parameter in pipe.transformer.named_parameters():
        if "lora_" in name:
            parameter.data = draw(*parameter.shape, generator=generator)
    tensors = get_peft_model_state_dict(pipe.transformer)
    metadata = _collate_lora_metadata({"transformer": pipe.transformer})
    pipe.save_lora_weights(OUT, tensors, weight_name="diffusers.safetensors", **metadata)


def wan_names() -> dict[str, tuple[str, tuple[int, int]]]:
    """Original layer name -> (name in diffusers, weight shape)."""
    shapes = {name: value.shape for name, value in base_pipeline().transformer.state_dict().items()}
    names = {}
    for block in range(3):
        for ours, theirs in (("attn1", "self_attn"), ("attn2", "cross_attn")):
            for short, long in ATTENTION.items():
                names[f"blocks.{block}.{theirs}.{short}"] = f"blocks.{block}.{ours}.{long}"
        names[f"blocks.{block}.ffn.0"] = f"blocks.{block}.ffn.net.0.proj"
        names[f"blocks.{block}.ffn.2"] = f"blocks.{block}.ffn.net.2"
    return {theirs: (ours, shapes[f"{ours}.weight"]) for theirs, ours in names.items()}


def record_wan(generator: torch.Generator) -> None:
    """diffusers reads alphas for layers of blocks only; powers of two, since it multiplies in the file's precision."""
    tensors = {}
    embedders = {
        f"{kind}_embedding.{index}": f"condition_embedder.{kind}_embedder.linear_{number}"
        for kind in ("time", "text")
        for index, number in ((0, 1), (2, 2))
    }
    globals_ = {**embedders, "time_projection.1": "condition_embedder.time_proj", "head.head": "proj_out"}
    state = base_pipeline().transformer.state_dict()
    layers = wan_names() | {theirs: (ours, state[f"{ours}.weight"].shape) for theirs, ours in globals_.items()}
    for number, (theirs, (_, (out, features))) in enumerate(layers.items()):
        tensors[f"{theirs}.lora_down.weight"] = draw(4, features, generator=generator)
        tensors[f"{theirs}.lora_up.weight"] = draw(out, 4, generator=generator)
        tensors[f"{theirs}.diff_b"] = draw(out, generator=generator)
        if theirs.startswith("blocks"):
            tensors[f"{theirs}.alpha"] = torch.tensor(2.0 ** (number % 4))
    tensors = {f"diffusion_model.{name}": tensor.half() for name, tensor in tensors.items()}
    save_file(tensors, OUT / "wan.safetensors")


def record_kohya(generator: torch.Generator) -> None:
    tensors = {}
    for number, (theirs, (_, (out, features))) in enumerate(wan_names().items()):
        layer = "lora_unet_" + theirs.replace(".", "_")
        tensors[f"{layer}.lora_down.weight"] = draw(2, features, generator=generator).bfloat16()
        tensors[f"{layer}.lora_up.weight"] = draw(out, 2, generator=generator).bfloat16()
        tensors[f"{layer}.alpha"] = torch.tensor(2.0 ** (number % 3)).bfloat16()
    save_file(tensors, OUT / "kohya.safetensors")


def record_fused(name: str, keys: list[str]) -> None:
    pipe = base_pipeline()
    pipe.load_lora_weights(OUT, weight_name=f"{name}.safetensors")
    pipe.fuse_lora(lora_scale=SCALE)
    pipe.unload_lora_weights()
    state = pipe.transformer.state_dict()
    arrays = {key: state[key].numpy() for key in keys}
    if name == "diffusers":
        case = dict(np.load(BASE / "case.npz"))
        inputs = {key: torch.from_numpy(case[key]) for key in ("hidden_states", "timestep", "encoder_hidden_states")}
        with torch.no_grad():
            arrays["output"] = pipe.transformer(**inputs, return_dict=False)[0].numpy()
    np.savez_compressed(OUT / f"{name}.npz", **arrays)
    print(name, {key: value.shape for key, value in arrays.items()})


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    generator = torch.Generator().manual_seed(7)
    record_diffusers(generator)
    record_wan(generator)
    record_kohya(generator)
    block = ["attn1.to_q.weight", "attn2.to_k.weight", "attn2.to_out.0.weight", "ffn.net.0.proj.weight"]
    blocks = [f"blocks.{number}.{name}" for number in (1, 2) for name in (*block, "ffn.net.2.weight")]
    embedders = [f"condition_embedder.{name}.weight" for name in ("time_embedder.linear_1", "text_embedder.linear_2")]
    patches = ["patch_embedding.weight", "patch_short.weight", "patch_mid.weight"]
    record_fused("diffusers", [*blocks, *embedders, *patches, "condition_embedder.time_proj.weight", "proj_out.weight"])
    biases = [f"{name.removesuffix('weight')}bias" for name in blocks[:3]]
    record_fused("wan", [*blocks, *biases, *embedders, "condition_embedder.time_proj.bias", "proj_out.weight"])
    record_fused("kohya", blocks)


if __name__ == "__main__":
    main()
