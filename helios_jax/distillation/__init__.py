"""Distillation: the few-step generator's rollout, distribution matching, and an adversarial loss.

    rollout   a chunk sampled by the generator, stopped at a random step of every level
    walk      the same rollout in small programs, and its gradient from the top level down
    scores    the gradient in a sample, from a network with and without adapters
    dmd       scores, their difference as a gradient, the critic's loss, and the noise levels of both
    gan       the generator's and the discriminator's adversarial losses, on crops (``crops``)
    judge     the fake score's network with the heads of the discriminator
    grids     a teacher's steps on a level, with every step of its student among them
    regularisers, moments, rewards
              optional terms of the generator's loss

Pure functions of arrays and networks (arXiv 2603.04379), with the pyramid tables and the solver of sampling.
"""
