"""Distillation: the few-step generator's rollout, and the gradient of distribution matching.

    rollout   a chunk sampled by the generator, stopped at a random step of every level
    dmd       scores, their difference as a gradient, the critic's loss, and the noise levels of both
    regularisers, moments, rewards
              optional terms of the generator's loss

Pure functions of arrays and networks (arXiv 2603.04379), with the pyramid tables and the solver of sampling.
"""
