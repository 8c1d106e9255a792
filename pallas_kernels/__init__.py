"""Kernels for NVIDIA Hopper GPUs in Pallas Mosaic GPU, each beside a plain JAX reference and one dispatch function."""
