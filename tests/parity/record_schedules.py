"""Records schedules, solver trajectories and guidance of diffusers for tests/diffusion.

    python tests/parity/record_schedules.py

in an environment with torch==2.13.0 and diffusers==0.42.1 (and what its Helios pipelines import:
transformers, ftfy). Writes tests/parity/data/schedules/: ``schedules.json`` (tables and sigmas, float64),
``trajectories.{json,npz}`` (fp32, one level), ``pyramid.npz`` (three levels with both roundings) and
``guidance.npz``. Arrays are channels-last.
"""

import itertools
import json
import math
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import HeliosDMDScheduler, HeliosScheduler
from diffusers.pipelines.helios.pipeline_helios_pyramid import calculate_shift, optimized_scale

OUT = pathlib.Path(__file__).parent / "data" / "schedules"
RANGES = {1: [0, 1], 2: [0, 0.5, 1], 3: [0, 1 / 3, 2 / 3, 1], 4: [0, 0.25, 0.5, 0.75, 1]}


def make(solver, stages=3, **settings):
    """A scheduler of the named solver."""
    settings = {"stages": stages, "stage_range": RANGES[stages], **settings}
    if solver == "dmd":
        return HeliosDMDScheduler(**settings)
    return HeliosScheduler(scheduler_type=solver, **settings)


def published(scheduler):
    """The scheduler's JSON file as a dictionary."""
    return json.loads(scheduler.to_json_string())


def set_timesteps(scheduler, level, steps, num_tokens, amplify=False):
    """Prepares one level as the pipelines do."""
    sigmas = None
    if scheduler.config.stages == 1:
        points = steps + 1 if isinstance(scheduler, HeliosDMDScheduler) else steps
        sigmas = np.linspace(0.999, 0.0, points + 1)[:-1]
    scheduler.set_timesteps(steps, level, sigmas=sigmas, mu=calculate_shift(num_tokens), is_amplify_first_chunk=amplify)


def record_schedules():
    """Tables of every level, and schedules over solvers, shifts, levels and step counts."""
    dynamic = [dict(use_dynamic_shifting=True, time_shift_type=kind) for kind in ("exponential", "linear")]
    cases = [("unipc", 1, dynamic[0]), ("unipc", 1, dynamic[1]), ("dmd", 1, dynamic[1]), ("euler", 1, {})]
    cases += [(solver, 3, shift) for solver in ("unipc", "dmd") for shift in ({}, *dynamic)]
    cases += [(solver, 3, dict(shift=3.0)) for solver in ("euler", "dmd")]
    cases += [("unipc", 2, dict(gamma=0.2)), ("dmd", 2, dict(gamma=0.2, **dynamic[1]))]
    cases += [("unipc", 4, dict(gamma=0.2, **dynamic[0])), ("dmd", 4, dynamic[0])]
    cases += [("unipc", 3, dict(num_train_timesteps=500, **dynamic[1]))]
    records = []
    for solver, stages, settings in cases:
        scheduler = make(solver, stages, **settings)
        levels = [
            {
                "raw_start": scheduler.ori_start_sigmas[i],
                "start": scheduler.start_sigmas[i],
                "end": scheduler.end_sigmas[i],
                "timesteps": scheduler.timesteps_per_stage[i][[0, 1, 333, -1]].tolist(),
                "sigmas": scheduler.sigmas_per_stage[i][[0, 1, 333, -1]].tolist(),
            }
            for i in range(stages)
        ]
        schedules = []
        amplifications = (False, True) if solver == "dmd" else (False,)
        for level, steps, amplify in itertools.product(range(stages), (1, 2, 3, 8, 20), amplifications):
            num_tokens = 540 * 4**level
            set_timesteps(scheduler, level, steps, num_tokens, amplify)
            if stages == 1 and amplify:  # the pipelines' sigmas do not know of it
                continue
            schedules.append(
                {
                    "arguments": {"level": level, "steps": steps, "num_tokens": num_tokens, "amplify": amplify},
                    "sigmas": scheduler.sigmas.tolist(),
                    "timesteps": scheduler.timesteps.tolist(),
                }
            )
        records.append({"config": published(scheduler), "levels": levels, "schedules": schedules})
    (OUT / "schedules.json").write_text(json.dumps(records))


VELOCITIES = {
    "linear": lambda x, sigma: 0.5 * x + 0.25 * sigma,
    "wavy": lambda x, sigma: torch.sin(3 * x) - sigma * x,
}


def solve(scheduler, x, velocity):
    """All samples of one level, x included; ``velocity`` maps (x, sigma) to the network's output."""
    start, samples = x, [x]
    timesteps = scheduler.timesteps
    for i, t in enumerate(timesteps):
        kwargs = {}
        if isinstance(scheduler, HeliosDMDScheduler):
            kwargs = dict(
                cur_sampling_step=i,
                dmd_noisy_tensor=start,
                dmd_sigmas=scheduler.sigmas,
                dmd_timesteps=timesteps,
                all_timesteps=timesteps,
            )
        x = scheduler.step(velocity(x, float(scheduler.sigmas[i])), t, x, return_dict=False, **kwargs)[0]
        samples.append(x)
    return samples


def channels_last(x):
    """[B,C,T,H,W] -> [B,T,H,W,C], fp32 (exact for bf16)."""
    return x.float().permute(0, 2, 3, 4, 1).contiguous().numpy()


def record_trajectories():
    """fp32 trajectories of one level (0 of 1, or 1 of 3) with a velocity that depends on the sample."""
    shift = dict(use_dynamic_shifting=True)
    unipc = [
        dict(solver_order=order, solver_type=kind, **extra, **shift)
        for order, kind, extra in [
            (1, "bh1", {}),
            (1, "bh2", {}),
            (2, "bh1", {}),
            (2, "bh2", {}),
            (2, "bh1", dict(disable_corrector=[0, 2])),
            (2, "bh2", dict(disable_corrector=[0, 2])),
            (2, "bh2", dict(lower_order_final=False)),
        ]
    ]
    cases = [("unipc", stages, settings) for stages in (1, 3) for settings in unipc]
    cases += [(solver, stages, shift) for stages in (1, 3) for solver in ("euler", "dmd")]
    x = torch.randn(1, 2, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    configs, arrays = [], {"start": channels_last(x)}
    for solver, stages, settings in cases:
        scheduler = make(solver, stages, **settings)
        for steps, name in itertools.product((1, 2, 3, 5, 20), VELOCITIES):
            set_timesteps(scheduler, stages // 2, steps, 2160)
            samples = torch.cat(solve(scheduler, x, VELOCITIES[name]))
            arrays[f"{len(configs)}/{steps}/{name}"] = channels_last(samples[1:])
        configs.append(published(scheduler))
    (OUT / "trajectories.json").write_text(json.dumps(configs))
    np.savez_compressed(OUT / "trajectories.npz", **arrays)


def block_noise(shape, gamma, generator):
    """Noise of covariance (1 + gamma) I - gamma 11^T in every 2x2 block.

    Factored in float64: the fp32 Cholesky in the pipeline fails on some CPUs, its matrix being singular.
    """
    b, c, t, h, w = shape
    covariance = (1 + gamma + 1e-8) * torch.eye(4, dtype=torch.float64) - gamma
    factor = torch.linalg.cholesky(covariance).float()
    blocks = torch.randn(b, c, t, h // 2, w // 2, 4, generator=generator) @ factor.T
    return blocks.unflatten(-1, (2, 2)).transpose(4, 5).reshape(shape)


def record_pyramid():
    """Three levels with transitions, in the dtypes of the pipeline; velocities are kept for replay."""
    arrays = {}
    generator = torch.Generator().manual_seed(1)
    for solver, dtype in itertools.product(("dmd", "unipc", "euler"), (torch.bfloat16, torch.float32)):
        kind = "linear" if solver == "dmd" else "exponential"
        scheduler = make(solver, use_dynamic_shifting=True, time_shift_type=kind)
        latents = torch.randn(2, 4, 2, 8, 8, generator=generator)
        name = f"{solver}/{str(dtype).removeprefix('torch.')}"
        arrays[f"{name}/noise"] = channels_last(latents)
        for size in (4, 2):
            latents = torch.stack(
                [F.interpolate(frame, size=(size, size), mode="bilinear") * 2 for frame in latents.unbind(2)], dim=2
            )
        for level, num_tokens in enumerate((540, 540, 2160)):
            set_timesteps(scheduler, level, 2 if solver == "dmd" else 4, num_tokens, amplify=True)
            if level > 0:
                latents = torch.stack([F.interpolate(frame, scale_factor=2) for frame in latents.unbind(2)], dim=2)
                signal = 1 - scheduler.ori_start_sigmas[level]
                gamma = scheduler.config.gamma
                alpha = 1 / (math.sqrt(1 + (1 / gamma)) * (1 - signal) + signal)
                beta = alpha * (1 - signal) / math.sqrt(gamma)
                noise = block_noise(latents.shape, gamma, generator)
                arrays[f"{name}/block{level}"] = channels_last(noise)
                latents = alpha * latents + beta * noise.to(dtype)
            arrays[f"{name}/start{level}"] = channels_last(latents)
            velocities = []

            def velocity(x, sigma, velocities=velocities, dtype=dtype):
                velocities.append(VELOCITIES["wavy"](x.to(dtype), sigma))
                return velocities[-1]

            samples = solve(scheduler, latents, velocity)
            arrays[f"{name}/velocity{level}"] = np.stack([channels_last(v) for v in velocities])
            arrays[f"{name}/samples{level}"] = np.stack([channels_last(x) for x in samples[1:]])
            latents = samples[-1]
    np.savez_compressed(OUT / "pyramid.npz", **arrays)


def record_guidance():
    """Plain guidance and CFG-Zero* of two samples."""
    arrays = {}
    generator = torch.Generator().manual_seed(2)
    for dtype in (torch.bfloat16, torch.float32):
        c, u = torch.randn(2, 2, 4, 2, 4, 4, generator=generator).to(dtype)
        c = u + 0.3 * c
        scale = optimized_scale(c.reshape(2, -1), u.reshape(2, -1)).view(2, 1, 1, 1, 1).to(dtype)
        name = str(dtype).removeprefix("torch.")
        arrays[f"{name}/cond"], arrays[f"{name}/uncond"] = channels_last(c), channels_last(u)
        arrays[f"{name}/plain"] = channels_last(u + 5.0 * (c - u))
        arrays[f"{name}/zero_star"] = channels_last(u * scale + 5.0 * (c - u * scale))
    np.savez_compressed(OUT / "guidance.npz", **arrays)


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    record_schedules()
    record_trajectories()
    record_pyramid()
    record_guidance()
