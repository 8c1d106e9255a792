"""Checkpoints: diffusers folders, Orbax folders, LoRA files."""
