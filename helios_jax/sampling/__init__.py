"""Sampling: the pipeline, its chunk loop and everything that it reads and writes."""
