"""The PyTorch peer of ``inference.py``: diffusers' Helios with random weights, compiled block by block.

    python benchmarks/peer_diffusers.py --out=peer.json

Needs torch and diffusers. This is the fastest configuration of diffusers that we found: per-block ``torch.compile``,
PyTorch's own attention (it chooses cuDNN or FlashAttention), the VAE in bf16 and channels-last. Figures have the same
names as in ``inference.py``.
"""

import argparse
import functools
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from diffusers import AutoencoderKLWan, HeliosDMDScheduler, HeliosPyramidPipeline, HeliosTransformer3DModel
from diffusers.models.transformers.transformer_helios import HeliosRotaryPosEmbed

FRAMES = 33
DTYPE = torch.bfloat16


def empty_transformer() -> HeliosTransformer3DModel:
    """The 14B model on the GPU in the published dtypes, with uninitialised parameters."""
    with torch.device("meta"):
        model = HeliosTransformer3DModel()
    for name, parameter in model.named_parameters():
        keep = any(part in name for part in model._keep_in_fp32_modules)
        parameter.data = torch.empty_like(parameter, dtype=torch.float32 if keep else DTYPE)
    model = model.to_empty(device="cuda").eval().requires_grad_(False)
    config = model.config
    model.rope = HeliosRotaryPosEmbed(config.rope_dim, config.rope_theta).to("cuda")  # its buffers are not parameters
    return model


@torch.no_grad()
def fill(model: torch.nn.Module) -> None:
    """Kernels of variance 1 / fan-in, norm weights 1, biases 0, as in ``random_network``."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "gamma" not in name:
            parameter.normal_(0, parameter[0].numel() ** -0.5)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def inputs(height: int, width: int, batch: int = 1) -> dict[str, Any]:
    """Arguments of one network call at a level of this latent size, its history at the full size of 48 x 80."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, device="cuda", dtype=DTYPE)

    def indices(*values: int) -> torch.Tensor:
        return torch.tensor(values, device="cuda").expand(batch, -1)

    return {
        "hidden_states": normal(16, 9, height, width),
        "timestep": torch.full((batch,), 500, device="cuda"),
        "encoder_hidden_states": normal(512, 4096),
        "indices_hidden_states": indices(*range(20, 29)),
        "indices_latents_history_short": indices(0, 19),
        "indices_latents_history_mid": indices(17, 18),
        "indices_latents_history_long": indices(*range(1, 17)),
        "latents_history_short": normal(16, 2, 48, 80),
        "latents_history_mid": normal(16, 2, 48, 80),
        "latents_history_long": normal(16, 16, 48, 80),
        "return_dict": False,
    }


def milliseconds(call: Callable[[], Any], repeats: int = 5) -> float:
    """Median, by device events."""
    times = []
    for run in range(repeats + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        if run >= 2:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


@torch.no_grad()
def main(args: argparse.Namespace) -> None:
    """Runs everything."""
    torch.backends.cudnn.benchmark = True
    figures: dict[str, Any] = {"torch": torch.__version__}

    def add(name: str, value: float) -> None:
        figures[name] = value
        print(f"peer: {name:48s} {value:.2f}", flush=True)
        args.out.write_text(json.dumps(figures, indent=1) + "\n")

    transformer = empty_transformer()
    fill(transformer)
    transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)
    torch._dynamo.config.cache_size_limit = 64
    sizes = [(12, 20), (24, 40), (48, 80)]
    times = [milliseconds(functools.partial(transformer, **inputs(*size))) for size in sizes]
    for level, ms in enumerate(times):
        add(f"network call, level {level}, ms", ms)
    add("network calls, sum of levels, ms", sum(times))

    vae = AutoencoderKLWan().to("cuda", DTYPE).eval().requires_grad_(False)
    fill(vae)
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.weight.data = module.weight.data.to(memory_format=torch.channels_last_3d)
    latents = torch.randn(1, 16, 9, 48, 80, device="cuda", dtype=DTYPE)
    add("VAE decode, 33 frames, ms", milliseconds(lambda: vae.decode(latents, return_dict=False), 3))

    scheduler = HeliosDMDScheduler(use_dynamic_shifting=True, time_shift_type="linear")
    pipe = HeliosPyramidPipeline(
        tokenizer=None, text_encoder=None, vae=vae, scheduler=scheduler, transformer=transformer, is_distilled=True
    )
    pipe.set_progress_bar_config(disable=True)
    embeds = torch.randn(1, 512, 4096, device="cuda", dtype=DTYPE)

    def seconds(steps: list[int], chunks: int) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        frames = pipe(
            prompt_embeds=embeds,
            negative_prompt_embeds=embeds,
            height=384,
            width=640,
            num_frames=FRAMES * chunks,
            pyramid_num_inference_steps_list=steps,
            guidance_scale=1.0,
            is_amplify_first_chunk=False,
            output_type="pt",
            generator=torch.Generator("cuda").manual_seed(1),
        ).frames
        frames.cpu()
        return time.perf_counter() - start

    seconds([1, 1, 1], 1)
    add("steps (1, 1, 1): first chunk, s", seconds([1, 1, 1], 1))
    add("steps (1, 1, 1): frames per second", FRAMES * args.chunks / seconds([1, 1, 1], args.chunks))
    add("steps (2, 2, 2): frames per second", FRAMES * args.chunks / seconds([2, 2, 2], args.chunks))
    add("peak device memory, GB", torch.cuda.max_memory_allocated() / 1e9)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("peer.json"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse())
