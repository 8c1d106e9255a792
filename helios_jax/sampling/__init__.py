"""Sampling: the pipeline, its chunk loop, and the conditions and draws that they take."""
