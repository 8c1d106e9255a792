# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Sampling by hand
#
# `pipe("a prompt")` runs a short loop. This notebook writes it out: text once, then for each chunk the context, three
# pyramid levels with a few network calls each, and the decoder. Set `HELIOS_CHECKPOINT` to a published checkpoint;
# without it a small one with **random** weights is made, and the frames are noise. The stored outputs are of such a
# run on a CPU.

# %%
import os
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

import helios_jax as hx
from helios_jax.checkpoints.random import write_random_checkpoint

checkpoint = os.environ.get("HELIOS_CHECKPOINT")
if checkpoint is None:
    checkpoint = tempfile.mkdtemp()
    write_random_checkpoint(checkpoint)
    height, width, max_text_tokens = 64, 128, 48
else:
    height, width, max_text_tokens = 384, 640, 512

pipe = hx.HeliosPipeline.from_pretrained(checkpoint)
pipe

# %% [markdown]
# ## Text
#
# The encoder's output is zero after the end of the prompt. The transformer projects it to the keys and values of all
# its blocks once; every step, level and chunk uses them.

# %%
from helios_jax.sampling.chunk import project_text

prompt = "A red fox trots through fresh snow."
embeds = pipe.text_encoder([prompt], max_text_tokens)
text = project_text(pipe.transformer, embeds)
embeds.shape, text.k.shape  # [B,S,E], [L,B,S,N,K]

# %% [markdown]
# ## The plan of a chunk
#
# Everything that the schedule decides is known before sampling: for each level its size, the timestep input of the
# network at each step, and the solver's scalars.

# %%
from helios_jax.sampling.plan import plan_chunk

transformer = pipe.transformer.module
latent_size = height // 8, width // 8
plans = plan_chunk(
    pipe.scheduler,
    transformer.config,
    steps=(2, 2, 2),
    frames=9,
    size=latent_size,
    integer_timesteps=True,
)
for plan in plans:
    print(plan.size, plan.timesteps, plan.transition)

# %% [markdown]
# ## One chunk
#
# The history starts as zeros: text-to-video is the case with no past. Noise of the full size is halved twice for the
# first level; between levels the sample is upsampled and noise is added that removes the 2x2 blocks.

# %%
from helios_jax.config import HistoryConfig
from helios_jax.context import History
from helios_jax.diffusion import make_solver
from helios_jax.sampling.chunk import begin_first_level, begin_level, embed_history, rope_table

history_config = HistoryConfig()
solver = make_solver(pipe.scheduler)
noise = hx.KeyNoise(key=jax.random.key(0))
ropes = [rope_table(pipe.transformer, history_config, latent_size, plan.size) for plan in plans]


@jax.jit
def velocity(transformer, x, timestep, text, context, rope):
    """The network's prediction: the direction from the level's end point to its start point."""
    timestep = jnp.full(x.shape[:1], timestep)
    return transformer.module.denoise(x, timestep, text=text, context=context, rope=rope)


def sample_chunk(k: int, history: History) -> jax.Array:
    context = embed_history(pipe.transformer, history, history_config)
    shape = (1, 9, *latent_size, 16)
    state = begin_first_level(solver, noise.normal(f"chunk{k}/initial", shape), len(plans) - 1)
    for level, plan in enumerate(plans):
        if level > 0:
            z = noise.normal(f"chunk{k}/block{level}", (1, 9, *plan.size, 16))
            state = begin_level(solver, state, z, plan.transition, pipe.scheduler.gamma, transformer.dtype)
        for timestep, scalars in zip(plan.timesteps, plan.step_scalars, strict=True):
            v = velocity(pipe.transformer, state.x, timestep, text, context, ropes[level])
            state = solver.step(state, v, jnp.asarray(scalars))
    return solver.finish(state, transformer.dtype)


# %% [markdown]
# ## The video
#
# A finished chunk joins the history, which forgets as many frames; the first frame of the first chunk becomes the
# anchor that every later chunk sees. Each chunk is decoded on its own.

# %%
from helios_jax.sampling.chunk import remember
from helios_jax.sampling.decoding import decode_chunk

history = History.empty(history_config, 1, *latent_size, 16)
chunks = []
for k in range(2):
    latents = sample_chunk(k, history)
    history = remember(history, latents, k == 0)
    chunks.append(np.asarray(decode_chunk(pipe.vae, latents)))
frames = np.concatenate(chunks, axis=1)
frames.shape

# %% [markdown]
# The pipeline does the same, with one compiled program per step instead of two.

# %%
out = pipe(
    prompt,
    num_frames=66,
    height=height,
    width=width,
    steps=(2, 2, 2),
    amplify_first_chunk=False,
    max_text_tokens=max_text_tokens,
    seed=0,
    progress=False,
)
difference = np.abs(out.frames.astype(float) - frames[:, : out.frames.shape[1]]).mean()
print(f"mean difference of the frames: {difference:.3f} of 255")

# %% [markdown]
# A notebook shows the result as a player. `save` writes one mp4 for each video of the batch.

# %%
files = out.save(os.path.join(tempfile.mkdtemp(), "fox.mp4"), fps=24)
print(*(file.name for file in files))
out

# %% [markdown]
# Every 16th frame:

# %%
from PIL import Image

Image.fromarray(np.concatenate(list(out.frames[0, ::16]), axis=1))
