"""Sampling: the pipeline, its chunk loop, conditioning and noise."""
