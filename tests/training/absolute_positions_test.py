"""Training with absolute positions: every sample is at the place of its own chunk."""

import copy
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from method_cases import LAYOUT, draw, keys, latent_batch, loss, networks, sample

from helios_jax.config import HistoryConfig, PipelineConfig, SchedulerConfig
from helios_jax.data.helios_latents.record import LatentRecord
from helios_jax.experiments import stage1_init, stage3_distill, stage3_ode
from helios_jax.training.experiment import MAY_CHANGE
from helios_jax.training.injection import ContextDrop, Injection
from helios_jax.training.methods.base import Base
from helios_jax.training.methods.consistency import Consistency
from helios_jax.training.methods.ode import Ode
from helios_jax.training.methods.pyramid import Pyramid
from helios_jax.training.overrides import as_json, frozen
from helios_jax.training.run_folder import check_settings, write_settings
from helios_jax.training.text_formats import PaddedEmbeds
from helios_jax.training.windows import window_batch

CHUNKS = jnp.array([0, 4, 20])
ABSOLUTE = dataclasses.replace(LAYOUT, positions="absolute")


def injection(layout: HistoryConfig, **drop: float) -> Injection:
    drop = ContextDrop(**{"t2v": 0.0, "i2v": 0.0, "v2v": 0.0} | drop)
    return Injection(layout=layout, drop=drop, corruption=None, saturation=None)


def test_windows_say_which_chunk_they_show():
    """A draw of 0.3 among 8 chunks is chunk 2, one of 0.99 is chunk 7."""
    latents = np.zeros((8, 9, 1, 1, 4))
    records = [
        LatentRecord(
            uid=f"{n}",
            latents=latents,
            anchor=latents[0, 0],
            caption="",
            embeds=np.zeros((1, 2)),
            fps=24.0,
            height=8,
            width=8,
        )
        for n in range(2)
    ]
    batch = window_batch(records, [0.3, 0.99], history_frames=19, text=PaddedEmbeds(tokens=2))
    assert batch.chunk.tolist() == [2, 7]


def test_chunks_without_a_past_are_at_the_beginning():
    """Samples whose past is dropped look like first chunks, and are numbered like them."""
    batch = dataclasses.replace(latent_batch(3), chunk=CHUNKS)
    always, never = (injection(ABSOLUTE, t2v=t2v) for t2v in (1.0, 0.0))
    draws = jax.vmap(lambda key: never.draw(key, batch.history.shape[1:]))(keys(3))
    assert never.chunks(batch, draws).tolist() == [0, 4, 20]
    assert always.chunks(batch, draws).tolist() == [0, 0, 0]
    assert injection(LAYOUT).chunks(batch, draws) == 0
    with pytest.raises(ValueError, match=r"batch\.chunk is None"):
        never.chunks(latent_batch(3), draws)


def test_stage_3_refuses_absolute_positions():
    for make in (lambda: Ode(layout=ABSOLUTE), lambda: Consistency(context=injection(ABSOLUTE))):
        with pytest.raises(ValueError, match="stage 3 is trained with 'relative' positions only"):
            make()


def test_one_layout_for_data_method_and_product():
    settings = frozen(stage1_init.get_config("tiny"))
    layout = HistoryConfig(sizes=(0, 2, 1))
    data = dataclasses.replace(settings.data, layout=layout)
    method = dataclasses.replace(settings.method, context=dataclasses.replace(settings.method.context, layout=layout))
    with pytest.raises(ValueError, match=r"one layout of the context.*product\.config\.history"):
        dataclasses.replace(settings, data=data, method=method)
    config = PipelineConfig(is_pyramid=False, history=layout)
    product = dataclasses.replace(settings.product, config=config)
    assert dataclasses.replace(settings, data=data, method=method, product=product).data.layout == layout
    saved = config.to_diffusers(SchedulerConfig.base())
    assert saved["history"]["sizes"] == [0, 2, 1]
    assert PipelineConfig.from_diffusers(saved) == config


@pytest.mark.parametrize("stage", [stage1_init, stage3_ode, stage3_distill])
def test_runs_from_before_there_were_absolute_positions_resume(stage, tmp_path):
    now = json.loads(json.dumps(as_json(frozen(stage.get_config("tiny")))))

    def positions(node, value):
        """Gives all layouts these positions; ``None``: they have none."""
        for name, part in list(node.items()):
            if name == "positions" and value is None:
                del node[name]
            elif name == "positions":
                node[name] = value
            elif isinstance(part, dict):
                positions(part, value)
        return node

    write_settings(tmp_path, positions(copy.deepcopy(now), None))
    check_settings(tmp_path, now, may_change=MAY_CHANGE)
    with pytest.raises(ValueError, match=r"data\.layout\.positions: relative then, absolute now"):
        check_settings(tmp_path, positions(copy.deepcopy(now), "absolute"), may_change=MAY_CHANGE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Base, Pyramid])
def test_samples_are_at_the_places_of_their_chunks(kind):
    """A batch is the mean of its samples."""
    module, method = networks(), kind(context=injection(ABSOLUTE))
    batch = dataclasses.replace(latent_batch(3), chunk=CHUNKS)
    draws = draw(method, batch, keys(3))
    together, _ = loss(method, module, batch, draws)
    alone = [float(loss(method, module, sample(batch, n), sample(draws, n))[0]) for n in range(3)]
    assert float(together) == pytest.approx(np.mean(alone), rel=1e-5)
    elsewhere, _ = loss(method, module, dataclasses.replace(batch, chunk=CHUNKS[::-1]), draws)
    assert abs(float(elsewhere - together)) > 1e-5 * float(together)


@pytest.mark.slow
def test_without_an_anchor_positions_are_relative_all_the_same():
    free = [dataclasses.replace(layout, keep_first_frame=False) for layout in (LAYOUT, ABSOLUTE)]
    batch = latent_batch(3)
    batch = dataclasses.replace(batch, chunk=CHUNKS, history=jnp.concatenate([batch.history, batch.anchor], axis=1))
    draws = draw(Base(context=injection(free[0])), batch, keys(3))
    found = [float(loss(Base(context=injection(layout)), networks(), batch, draws)[0]) for layout in free]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
