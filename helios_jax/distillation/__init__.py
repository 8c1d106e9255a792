"""Distillation: the few-step generator's rollout, and the gradient of distribution matching.

    rollout   a chunk sampled by the generator, stopped at a random step of every level
    dmd       scores, their difference as a gradient, the critic's loss, and the noise levels of both
    grids     a teacher's steps on a level, with every step of its student among them

Pure functions of arrays and networks (arXiv 2603.04379), with the pyramid tables and the solver of sampling.
"""
