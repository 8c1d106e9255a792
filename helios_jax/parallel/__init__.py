"""Meshes, sharding rules and memory placement."""
