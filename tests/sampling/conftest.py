"""The recorded tiny checkpoint as Base, Mid and Distilled, and a record of what is compiled."""

import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jaxtyping
import numpy as np
import pytest

import helios_jax as hx
from helios_jax.sampling import producer

DATA = pathlib.Path(__file__).parents[1] / "parity" / "data" / "pipelines"


def checkpoint(kind: str, folder: pathlib.Path) -> pathlib.Path:
    """A checkpoint of one kind: the recorded weights under that kind's index and scheduler."""
    for part in (DATA / "checkpoint").iterdir():
        (folder / part.name).symlink_to(part)
    shutil.copytree(DATA / kind, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory) -> Callable[[str], hx.HeliosPipeline]:
    """Loads each kind once, in fp32."""
    loaded = {}

    def get(kind: str) -> hx.HeliosPipeline:
        if kind not in loaded:
            folder = checkpoint(kind, tmp_path_factory.mktemp(kind))
            loaded[kind] = hx.HeliosPipeline.from_pretrained(folder, dtype="float32", vae_dtype="float32")
        return loaded[kind]

    return get


@pytest.fixture
def distilled(pipelines) -> hx.HeliosPipeline:
    """The few-step pyramid pipeline."""
    return pipelines("distilled")


@pytest.fixture(scope="session")
def bfloat16(tmp_path_factory) -> hx.HeliosPipeline:
    """The few-step pyramid pipeline in the default dtypes."""
    return hx.HeliosPipeline.from_pretrained(checkpoint("distilled", tmp_path_factory.mktemp("bfloat16")))


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Annotations are not checked, as for users: arguments of wrong types reach the library's own checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams give black frames: decoding is nearly all the work, and the tests that use this look at latents only."""

    def black(vae: Any, latents: jax.Array, **_: Any) -> tuple[jax.Array, jax.Array]:
        batch, frames, height, width, _ = latents.shape
        pixels = np.zeros((batch, 4 * frames - 3, 8 * height, 8 * width, 3), np.uint8)
        return jax.device_put(pixels), jax.device_put(np.bool_(True))

    monkeypatch.setattr(producer, "decode_and_check", black)


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    """The names of the programs compiled so far in the test, as ``jit(name)``; clear the list to start anew."""
    names: list[str] = []

    def listen(event: str, _: float, **facts: str) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(facts["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)
