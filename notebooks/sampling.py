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
# # Sampling
#
# Video from text, from an image, as the continuation of a clip, and with a prompt that changes while the video runs;
# how a long video drifts; and the loop of the sampler written out.
#
# The model is helios-tiny, which comes with the package and knows a world of moving shapes. An installation without it
# makes a small checkpoint with **random** weights, whose frames are noise. Set `HELIOS_CHECKPOINT` to a folder or hub
# id to use another one, such as `BestWishYsh/Helios-Distilled` on a GPU.

# %%
import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import helios_jax as hx
from helios_jax.demo import LEFT, RIGHT, TEXT, demo_checkpoint, tasks

hx.use_compilation_caches()
folder = Path(tempfile.mkdtemp())
checkpoint = os.environ.get("HELIOS_CHECKPOINT") or demo_checkpoint(folder / "random")
pipe = hx.HeliosPipeline.from_pretrained(checkpoint, dtype="auto", vae_dtype="auto")
pipe

# %% [markdown]
# ## From text
#
# Size and length of texts are those that the checkpoint was trained with (`pipe.defaults`). A notebook shows the result
# as a player; `out.save("video.mp4")` writes it.

# %%
print(TEXT)
pipe(TEXT, num_frames=132)

# %% [markdown]
# ## From an image
#
# The image becomes the anchor, which every chunk sees. This one is a rendered scene of the world.

# %%
from PIL import Image

_, from_image, from_clip, _ = tasks(None, (pipe.defaults.height, pipe.defaults.width))
print(from_image.prompt)
Image.fromarray(from_image.inputs["image"]).resize((256, 256), Image.Resampling.NEAREST)

# %%
pipe(from_image.prompt, **from_image.inputs, num_frames=99)

# %% [markdown]
# ## Continuing a clip
#
# The last frames of the clip fill the history, so the video goes on as they move. Clip and continuation, one after the
# other:

# %%
print(from_clip.prompt)
continued = pipe(from_clip.prompt, **from_clip.inputs, num_frames=99)
clip = from_clip.inputs["video"]
hx.SampleOutput(frames=np.concatenate([clip[None], continued.frames], axis=1), latents=continued.latents)

# %% [markdown]
# ## A live change of the prompt
#
# A stream yields each chunk when it is ready, in constant memory, and takes a new prompt between chunks. Here the
# circle is told to turn round after four of eight chunks.

# %%
print(RIGHT, LEFT, sep="\n")
chunks = []
with pipe.stream(RIGHT, num_frames=None) as stream:
    for chunk in stream:
        chunks.append(chunk)
        print(f"chunk {chunk.index}: {chunk.frames.shape[1] / chunk.seconds:.0f} frames per second")
        if len(chunks) == 4:
            stream.set_prompt(LEFT, blend_chunks=0)
        if len(chunks) == 8:
            break
streamed = np.concatenate([chunk.frames for chunk in chunks], axis=1)
hx.SampleOutput(frames=streamed, latents=np.concatenate([chunk.latents for chunk in chunks], axis=1))

# %% [markdown]
# ## Drift
#
# Whatever changes from chunk to chunk although nothing in the prompt asks for it is drift. `helios-evaluate
# --suite=drift` measures it on many long videos; these are the statistics of the one above, each divided by its value
# in the first chunk.

# %%
import matplotlib.pyplot as plt

from helios_jax.evaluation.statistics import chunk_statistics

statistics = chunk_statistics(streamed[0], pipe.chunk_frames)
figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
for name in ("brightness", "contrast", "saturation", "sharpness", "high_band"):
    axes.plot(statistics[name] / statistics[name][0], marker="o", label=name)
axes.axvline(3.5, color="grey", linestyle=":")  # the new prompt
axes.set(xlabel="chunk", ylabel="of the first chunk", ylim=(0, None))
axes.legend(ncols=5, fontsize="small")
figure

# %% [markdown]
# # Sampling by hand
#
# `pipe("a prompt")` runs a short loop. This part writes it out: text once, then for each chunk the context, three
# pyramid levels with a few network calls each, and the decoder.

# %% [markdown]
# ## Text
#
# The encoder's output is zero after the end of the prompt. The transformer projects it to the keys and values of all
# its blocks once; every step, level and chunk uses them.

# %%
from helios_jax.sampling.chunk import project_text

height, width = pipe.defaults.height, pipe.defaults.width
embeds = pipe.text_encoder([TEXT], pipe.defaults.max_text_tokens)
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
decoded = []
for k in range(2):
    latents = sample_chunk(k, history)
    history = remember(history, latents, k == 0)
    decoded.append(np.asarray(decode_chunk(pipe.vae, latents)))
frames = np.concatenate(decoded, axis=1)
frames.shape

# %% [markdown]
# The pipeline does the same, with one compiled program per step instead of two.

# %%
out = pipe(TEXT, num_frames=66, steps=(2, 2, 2), amplify_first_chunk=False, seed=0, progress=False)
difference = np.abs(out.frames.astype(float) - frames[:, : out.frames.shape[1]]).mean()
print(f"mean difference of the frames: {difference:.3f} of 255")

# %% [markdown]
# Every 16th frame:

# %%
Image.fromarray(np.concatenate(list(out.frames[0, ::16]), axis=1))
