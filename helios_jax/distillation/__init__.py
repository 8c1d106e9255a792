"""Distillation: the few-step generator's rollout, and the gradient of distribution matching.

    rollout   a chunk made by the generator, left at a random step of every level
    dmd       scores, their difference as a gradient, the critic's loss, and the noise levels of both

Pure functions of arrays and networks (arXiv 2603.04379), under the same pyramid tables and solver as sampling.
"""
