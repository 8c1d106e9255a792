"""The state of a stream between two chunks, from which its video can be continued, also tomorrow and elsewhere.

    state = stream.state()
    state.save("fox.state")
    stream = pipe.stream(resume=StreamState.load("fox.state"))

Every draw is named after its chunk (``sampling/noise.py``) and everything that a chunk sees of the past is in the
context of fixed size, so a state is small (at 384x640 about 10 MB), and a resumed video is the video that would have
been made without the interruption, bit for bit.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from helios_jax.parallel.mesh import readable
from helios_jax.sampling.brief import brief_fields
from helios_jax.sampling.identity import ModelIdentity
from helios_jax.sampling.inputs import SampleInputs
from helios_jax.sampling.pending import Moment
from helios_jax.sampling.request import Request
from helios_jax.sampling.settings import SampleSettings
from helios_jax.sampling.state_files import read_state_file, write_state_file
from helios_jax.sampling.timeline import TimelineState
from helios_jax.typing import AnyArray, Float, Path
from helios_jax.user_input import finite_number, whole_number, yes_or_no

FREE_SETTINGS = ("num_frames", "exact_frames", "steps", "seed", "vae_slice_frames")
"""Settings that a resumed video may change."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class StreamState:
    """A video that can be continued. All arrays are in host memory.

    Attributes:
        index: The next chunk.
        frames: The frames of its context, latents in model space.
        anchor: The first latent frame of the video; zeros before it is known.
        timeline: Its text and that of later chunks.
        negative: Embeddings of the negative prompts; ``None`` without guidance.
        settings: How the video is sampled.
        batch: Videos sampled at once.
        conditioned: They started from an image or a clip.
        past_chunks: Whole chunks of the clip that they continue.
        seeded: Draws come from the seed; otherwise they came from ``noise``, which must be given again.
        model: The model.
    """

    index: int
    frames: Float[np.ndarray, "B T h w C"]
    anchor: Float[np.ndarray, "B 1 h w C"]
    timeline: TimelineState
    negative: Float[np.ndarray, "B S E"] | None
    settings: SampleSettings
    batch: int
    conditioned: bool
    past_chunks: int
    seeded: bool
    model: ModelIdentity

    __repr__ = brief_fields

    def save(self, path: Path) -> None:
        """Writes the state as one file, whole or not at all; a state that is there already is replaced.

        Raises:
            FileExistsError: The file exists and is not a state.
            OSError: It cannot be written.
        """
        timeline = self.timeline
        number = {id(array): i for i, array in enumerate(timeline.arrays)}
        arrays = {"frames": self.frames, "anchor": self.anchor}
        arrays |= {f"embeds{i}": np.asarray(array) for i, array in enumerate(timeline.arrays)}
        if self.negative is not None:
            arrays["negative"] = self.negative
        header = {
            "timeline": {
                **{name: number[id(getattr(timeline, name))] for name in ("old", "new", "shown")},
                "weights": timeline.weights,
                "changes": [[at, number[id(new)], weights] for at, (new, weights) in sorted(timeline.changes.items())],
            },
            "settings": vars(self.settings),
            "model": dataclasses.asdict(self.model),
            **{name: getattr(self, name) for name in ("index", "batch", "conditioned", "past_chunks", "seeded")},
        }
        write_state_file(path, header, arrays)

    @classmethod
    def load(cls, path: Path) -> "StreamState":
        """Reads a file that ``save`` wrote.

        Raises:
            FileNotFoundError: It does not exist.
            ValueError: It is not such a file, or damaged.
        """
        return read_state_file(path, _from_file)

    def check_settings(self, settings: SampleSettings) -> None:
        """Raises ValueError if ``settings`` differ from those of the video where they must not."""
        for name, kept in vars(self.settings).items():
            if name not in FREE_SETTINGS and (given := getattr(settings, name)) != kept:
                raise ValueError(
                    f"{name}={given!r}: the video to be resumed has {name}={kept!r}, which stays; "
                    f"{', '.join(FREE_SETTINGS)} may change"
                )

    def check_arrays(self, history: tuple[int, ...], width: int) -> None:
        """Raises ValueError unless the context has the shape ``history`` and embeddings have ``width`` columns."""
        if self.frames.shape != history or self.anchor.shape != (history[0], 1, *history[2:]):
            raise ValueError(f"the state holds a context of shape {list(self.frames.shape)}; {list(history)} is needed")
        for embeds in self.timeline.arrays:
            if embeds.ndim != 3 or embeds.shape[0] != self.batch or embeds.shape[2] != width:
                needed = f"[{self.batch}, tokens, {width}]"
                raise ValueError(f"the state holds embeddings of shape {list(embeds.shape)}; {needed} is needed")


def _from_file(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> StreamState:
    embeds = [arrays[f"embeds{i}"] for i in range(len(arrays) - 2 - ("negative" in arrays))]
    index, times = whole_number(header["index"], "index", at_least=0), header["timeline"]
    settings: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in header["settings"].items()
    }
    model: dict[str, Any] = {**header["model"], "dtypes": tuple(header["model"]["dtypes"])}
    return StreamState(
        index=index,
        frames=arrays["frames"],
        anchor=arrays["anchor"],
        timeline=TimelineState(
            chunk=index,
            old=embeds[times["old"]],
            new=embeds[times["new"]],
            shown=embeds[times["shown"]],
            weights=_weights(times["weights"]),
            changes={
                whole_number(at, "the chunk of a change", at_least=index): (embeds[new], _weights(weights))
                for at, new, weights in times["changes"]
            },
        ),
        negative=arrays.get("negative"),
        settings=SampleSettings(**settings),
        batch=whole_number(header["batch"], "batch", at_least=1),
        conditioned=yes_or_no(header["conditioned"], "conditioned"),
        past_chunks=whole_number(header["past_chunks"], "past_chunks", at_least=0),
        seeded=yes_or_no(header["seeded"], "seeded"),
        model=ModelIdentity(**model),
    )


def _weights(weights: list[float]) -> tuple[float, ...]:
    return tuple(finite_number(weight, "a weight", at_least=0.0, at_most=1.0) for weight in weights)


def check_resume(state: Any, inputs: SampleInputs) -> None:
    """Checks the argument ``resume`` of a call, next to which no inputs can be given.

    Raises:
        ValueError: It is not a state, or there are inputs.
    """
    if state is None:
        return
    if not isinstance(state, StreamState):
        raise ValueError(f"resume={state!r:.200} must be a StreamState: Stream.state(), or StreamState.load(file)")
    if given := [name for name, value in vars(inputs).items() if value is not None]:
        raise ValueError(
            f"{', '.join(given)} and resume are given: a resumed video has its prompt and its past; set a new prompt "
            "with set_prompt"
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Origin:
    """What a stream does not need to know about its call, but its state records.

    Attributes:
        settings: How the video is sampled.
        seeded: Draws come from the seed.
        identify: Gives the identity of the model.
    """

    settings: SampleSettings
    seeded: bool
    identify: Callable[[], ModelIdentity]


def captured(
    moment: Moment, negative: Float[AnyArray, "B S E"] | None, origin: Origin, request: Request
) -> StreamState:
    """Copies a moment of a stream to host memory; waits until the device has computed it."""
    past = moment.history
    frames, anchor, negative = jax.device_get(readable((past.frames, past.anchor, negative)))
    return StreamState(
        index=moment.index,
        frames=frames,
        anchor=anchor,
        timeline=moment.timeline.map(lambda arrays: jax.device_get(readable(arrays))),
        negative=negative,
        settings=origin.settings,
        batch=request.batch,
        conditioned=request.conditioned,
        past_chunks=request.past_chunks,
        seeded=origin.seeded,
        model=origin.identify(),
    )
