"""Diffusion mathematics: interpolation, pyramid level tables, solvers, guidance."""
