"""The PyTorch peer of ``training.py``: a stage-1 step of diffusers' Helios with LoRA by peft, random weights.

    python benchmarks/peer_training.py --out=peer.json

Needs torch, diffusers and peft. Checkpointing of every block, cuDNN attention, fused AdamW, bf16 autocast.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from peer_diffusers import DTYPE, empty_transformer, fill, inputs
from peft import LoraConfig

STEPS = 4


def main(out: Path) -> None:
    """Runs batch sizes 1 and 2."""
    model = empty_transformer()
    fill(model)
    model.add_adapter(LoraConfig(r=128, lora_alpha=128, target_modules="all-linear"))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for name in ("patch_short", "patch_mid", "patch_long"):
        trained += list(getattr(model, name).parameters())
    for parameter in trained:
        parameter.requires_grad_(True)
        parameter.data = parameter.data.float()
    model.enable_gradient_checkpointing()
    model.train()
    model.set_attention_backend("_native_cudnn")
    optimizer = torch.optim.AdamW(trained, lr=5e-5, fused=True)
    figures = {}
    for batch in (1, 2):
        arguments = inputs(48, 80, batch)
        target = torch.randn(batch, 16, 9, 48, 80, device="cuda")
        torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(1 + STEPS):
            torch.cuda.synchronize()
            start = time.perf_counter()
            with torch.autocast("cuda", dtype=DTYPE):
                (velocity,) = model(**arguments)
            (velocity.float() - target).pow(2).mean().backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        figures[f"stage 1, batch {batch}"] = {
            "seconds": statistics.median(seconds[1:]),
            "peak memory, GB": torch.cuda.max_memory_allocated() / 1e9,
            "trained parameters": sum(parameter.numel() for parameter in trained),
        }
        out.write_text(json.dumps(figures, indent=1) + "\n")
        print(f"peer: batch {batch}: {figures[f'stage 1, batch {batch}']}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("peer.json"))
    main(parser.parse_args().out)
