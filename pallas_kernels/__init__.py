"""Kernels for NVIDIA Hopper GPUs in Pallas Mosaic GPU, each with a plain JAX reference."""
