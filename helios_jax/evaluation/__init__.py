"""Evaluation: scores of sampled videos."""
