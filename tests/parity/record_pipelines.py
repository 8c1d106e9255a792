"""Records whole pipelines of diffusers: Base, Mid and Distilled in T2V, I2V and V2V, with small random weights.

Run in an environment with ``torch==2.13.0 diffusers==0.42.1 transformers ftfy`` (CPU builds):

    python tests/parity/record_pipelines.py

Every random draw is replaced by one of ``named_draws.NamedDraws``, under the names of ``NoiseSource``, so that the
tests replay the same draws. Writes ``tests/parity/data/pipelines/``: one checkpoint in the published layout, the
``model_index.json`` and scheduler of the three kinds, and ``<case>.npz`` with latents and some frames.
"""

import json
import pathlib
import shutil
import tempfile

import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    HeliosDMDScheduler,
    HeliosPipeline,
    HeliosPyramidPipeline,
    HeliosScheduler,
    HeliosTransformer3DModel,
)
from diffusers.models.autoencoders import vae as vae_module
from diffusers.pipelines.helios import pipeline_helios, pipeline_helios_pyramid
from named_draws import NamedDraws
from transformers import T5TokenizerFast, UMT5Config, UMT5EncoderModel

HERE = pathlib.Path(__file__).parent
OUT = HERE / "data" / "pipelines"
GAMMA = 1 / 3
PROMPT = "A red fox trots through fresh snow."
NEGATIVE = "blurry, static"

# case: (kind, size, arguments). Mid needs 128 pixels: CFG-Zero* of diffusers fails on a level of one token per frame.
CASES = {
    "distilled_t2v_amplified": (
        "distilled",
        (64, 128),
        {"num_frames": 70, "pyramid_num_inference_steps_list": [2, 2, 2], "is_amplify_first_chunk": True},
    ),
    "distilled_t2v_batch": (
        "distilled",
        (64, 64),
        {"num_frames": 34, "pyramid_num_inference_steps_list": [1, 2, 1], "prompt": [PROMPT, "Rain."]},
    ),
    "distilled_i2v": ("distilled", (64, 64), {"num_frames": 99, "pyramid_num_inference_steps_list": [2, 2, 2]}),
    "distilled_v2v": ("distilled", (64, 64), {"num_frames": 99, "pyramid_num_inference_steps_list": [2, 2, 2]}),
    "distilled_v2v_long": ("distilled", (64, 64), {"num_frames": 66, "pyramid_num_inference_steps_list": [1, 1, 1]}),
    "distilled_skip_first_chunk": (
        "distilled",
        (128, 64),
        {"num_frames": 99, "pyramid_num_inference_steps_list": [2, 2, 2], "is_skip_first_chunk": True},
    ),
    "mid_t2v": ("mid", (128, 128), {"num_frames": 99, "pyramid_num_inference_steps_list": [4, 3, 3]}),
    "mid_i2v": ("mid", (128, 128), {"num_frames": 66, "pyramid_num_inference_steps_list": [3, 2, 2]}),
    "mid_v2v": ("mid", (128, 128), {"num_frames": 66, "pyramid_num_inference_steps_list": [3, 2, 2]}),
    "base_t2v": ("base", (64, 64), {"num_frames": 99, "num_inference_steps": 6}),
    "base_i2v": ("base", (64, 80), {"num_frames": 66, "num_inference_steps": 4}),
    "base_v2v": ("base", (64, 64), {"num_frames": 66, "num_inference_steps": 4}),
}
CLIP_FRAMES = {"distilled_v2v": 70, "distilled_v2v_long": 101, "mid_v2v": 40, "base_v2v": 66}
KEPT_FRAMES = slice(None, None, 12)


def pixels(name: str, frames: int, height: int, width: int) -> np.ndarray:
    """A smooth clip in [0, 1], [F,H,W,3]; the tests make the same one."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    phase = len(name)
    waves = [np.sin(0.3 * t + (c + 1) * 0.05 * x + phase) * np.cos(0.07 * y - 0.1 * c * t) for c in range(3)]
    return (0.5 + 0.5 * np.stack(waves, -1)).astype(np.float32)


class Replay:
    """Stands in for torch's random functions inside the pipelines."""

    def __init__(self, draws: NamedDraws, kind: str, pieces: int) -> None:
        self.draws = draws
        if kind == "i2v":
            self.posteriors = ["anchor/posterior", "still/posterior"]
            self.sigmas = ["anchor/sigma", "still/sigma"]
            self.noises = ["anchor/noise", "still/noise"]
        elif kind == "v2v":
            names = ["anchor", *(f"piece{i}" for i in range(pieces))]
            self.posteriors, self.sigmas, self.noises = (
                [f"{name}/{use}" for name in names] for use in ("posterior", "sigma", "noise")
            )
        else:
            self.posteriors = self.sigmas = self.noises = []
        self.chunk = -1
        self.level = 0

    def _normal(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        b, c, t, h, w = shape
        return torch.from_numpy(np.moveaxis(self.draws.normal(name, (b, t, h, w, c)), -1, 1).copy())

    def posterior(self, shape, **_):
        return self._normal(self.posteriors.pop(0), tuple(shape))

    def randn(self, shape, **_):
        if self.noises:
            return self._normal(self.noises.pop(0), tuple(shape))
        self.chunk += 1
        self.level = 0
        return self._normal(f"chunk{self.chunk}/initial", tuple(shape))

    def rand(self, count, **_):
        name = self.sigmas.pop(0)
        value = self.draws.uniform(name, (count,) if name.startswith("piece") else ())
        return torch.from_numpy(np.atleast_1d(value))

    def block(self, _, batch, channels, frames, height, width, *args):
        """Correlated noise from named white noise by the closed form; its law is that of the original."""
        self.level += 1
        z = self._normal(f"chunk{self.chunk}/block{self.level}", (batch, channels, frames, height, width))
        blocks = z.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))
        mean = blocks.mean((-1, -3), keepdim=True)
        noise = (1 + GAMMA) ** 0.5 * (blocks - mean) + max(0.0, 1 - 3 * GAMMA) ** 0.5 * mean
        return noise.reshape(z.shape)


def randomize(module: torch.nn.Module, seed: int, gain: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.squeeze().ndim <= 1:
                parameter.copy_(parameter + 0.1 * noise)
            else:
                parameter.copy_(gain * noise / parameter[0].numel() ** 0.5)


def components() -> dict:
    tokenizer_folder = HERE / "data" / "text_encoder" / "tokens" / "tokenizer"
    tokenizer = T5TokenizerFast.from_pretrained(tokenizer_folder)
    text = UMT5EncoderModel(
        UMT5Config(vocab_size=288, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3, is_encoder_decoder=False)
    ).eval()
    randomize(text, 1, 1.0)
    vae = AutoencoderKLWan(base_dim=8, dim_mult=[1, 2, 2, 2], num_res_blocks=1).eval()
    randomize(vae, 2, 1.0)
    transformer = HeliosTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        rope_dim=(4, 6, 6),
        text_dim=24,
        freq_dim=32,
        ffn_dim=48,
        num_layers=2,
    ).eval()
    randomize(transformer, 3, 0.8)
    return {"tokenizer": tokenizer, "text_encoder": text, "vae": vae, "transformer": transformer}


def build(kind: str, parts: dict):
    if kind == "base":
        return HeliosPipeline(
            **parts, scheduler=HeliosScheduler(stages=1, stage_range=[0, 1], use_dynamic_shifting=True)
        )
    if kind == "mid":
        scheduler = HeliosScheduler(use_dynamic_shifting=True)
        return HeliosPyramidPipeline(**parts, scheduler=scheduler, is_cfg_zero_star=True)
    scheduler = HeliosDMDScheduler(use_dynamic_shifting=True, time_shift_type="linear")
    return HeliosPyramidPipeline(**parts, scheduler=scheduler, is_distilled=True)


def run(pipe, case: str, seed: int, output_type: str) -> np.ndarray:
    kind, (height, width), arguments = CASES[case]
    task = case.split("_")[1]
    frames = CLIP_FRAMES.get(case, 0)
    replay = Replay(NamedDraws(seed), task, frames // 33)
    arguments = {"prompt": PROMPT, "max_sequence_length": 16, **arguments}
    if task == "i2v":
        arguments["image"] = torch.from_numpy(pixels(case, 1, height, width)[0]).permute(2, 0, 1)[None]
    if task == "v2v":
        arguments["video"] = torch.from_numpy(pixels(case, frames, height, width)).permute(0, 3, 1, 2)[None]
    if kind != "distilled":
        arguments.setdefault("negative_prompt", NEGATIVE)

    vae_module.randn_tensor = replay.posterior
    saved = {}
    for module in (pipeline_helios, pipeline_helios_pyramid):
        saved[module] = module.randn_tensor
        module.randn_tensor = replay.randn
    rand, torch.rand = torch.rand, replay.rand
    original, HeliosPyramidPipeline.sample_block_noise = (
        HeliosPyramidPipeline.sample_block_noise,
        (lambda self, *args: replay.block(self, *args)),
    )
    try:
        pipe.set_progress_bar_config(disable=True)
        out = pipe(
            **arguments,
            height=height,
            width=width,
            guidance_scale=1.0 if kind == "distilled" else 5.0,
            output_type=output_type,
        ).frames
    finally:
        torch.rand = rand
        HeliosPyramidPipeline.sample_block_noise = original
        for module, function in saved.items():
            module.randn_tensor = function
    return out.numpy() if output_type == "latent" else out


def main() -> None:
    parts = components()
    shutil.rmtree(OUT, ignore_errors=True)
    for kind in ("base", "mid", "distilled"):
        pipe = build(kind, parts)
        if kind == "distilled":
            pipe.save_pretrained(OUT / "checkpoint")
        with tempfile.TemporaryDirectory() as folder:
            pipe.save_pretrained(folder)
            for name in ("model_index.json", "scheduler/scheduler_config.json"):
                (OUT / kind / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(pathlib.Path(folder) / name, OUT / kind / name)
    (OUT / "checkpoint" / "model_index.json").unlink()
    shutil.rmtree(OUT / "checkpoint" / "scheduler")
    for seed, (case, (kind, size, arguments)) in enumerate(CASES.items()):
        pipe = build(kind, parts)
        latents = np.moveaxis(run(pipe, case, seed, "latent"), 1, -1)
        frames = run(pipe, case, seed, "np")
        chunks = -(-arguments["num_frames"] // 33)
        np.savez_compressed(
            OUT / f"{case}.npz",
            latents=latents[:, -9 * chunks :],
            frames=np.round(frames[:, KEPT_FRAMES] * 255).astype(np.uint8),
            num_frames=frames.shape[1],
        )
        clip = CLIP_FRAMES.get(case, 0)
        (OUT / f"{case}.json").write_text(
            json.dumps(
                {"kind": kind, "seed": seed, "size": size, "clip_frames": clip, "arguments": arguments}, indent=1
            )
            + "\n"
        )
        print(f"{case}: latents {latents.shape} std {latents.std():.2f}, frames {frames.shape} std {frames.std():.3f}")


if __name__ == "__main__":
    main()
