"""Stage 3: the generator's gradient, the order of updates, and everything that can be switched on."""

import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_distillation import HEADS, PAIR, oracle, perturb, recorded_step, relative_error, running, window

from helios_jax.distillation.gan import Gan
from helios_jax.parallel.residence import Residence
from helios_jax.training.distill_settings import Decoupled, OwnContexts
from helios_jax.training.distiller import Distilling, _parts
from helios_jax.training.ema import Ema
from helios_jax.training.updates import Updater


def trained(run: Distilling, player: str) -> dict[str, np.ndarray]:
    return {path: np.asarray(array) for path, array in run.items()[player]["trainable"].items()}


def changed(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return any((before[path] != after[path]).any() for path in before)


@pytest.mark.slow
def test_the_generator_moves_by_the_gradient_of_the_rollout():
    """Pulled back through the walk, the gradient is that of the loss of a differentiable rollout."""
    run = running(amplify_first_chunk=False)
    want_loss, _, want = oracle(run, perturb(run))
    gradient, loss, _ = recorded_step(run)
    assert loss == pytest.approx(float(want_loss), rel=1e-4)
    assert relative_error(gradient, want) < 1e-4


@pytest.mark.slow
def test_order_of_updates():
    """The critic is updated at every step, the generator at the first of five, its average three times at first."""
    run, seen = running(), []
    for number in range(1, 7):
        before = {player: trained(run, player) for player in ("generator", "critic")}
        metrics = run.step(PAIR, number)
        seen.append(changed(before["generator"], trained(run, "generator")))
        assert changed(before["critic"], trained(run, "critic"))
        assert ("generator/loss" in metrics) == seen[-1]
        assert float(metrics["critic/skipped"]) == 0
    assert seen == [True, False, False, False, False, True]
    items = run.items()["generator"]
    assert int(items["updates"]) == 2
    # Averaged at steps 0, 1, 2 and 5; the first four only copy (start = 3).
    assert int(items["ema_count"]) == 4
    for path, array in items["trainable"].items():
        np.testing.assert_array_equal(items["ema"][path], array)


@pytest.mark.slow
def test_a_restored_run_continues_bit_for_bit():
    whole = running()
    for number in range(1, 4):
        whole.step(PAIR, number)
    saved = jax.tree.map(np.asarray, whole.items())
    for number in range(4, 7):
        whole.step(PAIR, number)

    def restore(abstract: Any) -> Any:
        return 3, jax.tree.map(lambda array, like: jax.device_put(array, like.sharding), saved, abstract)

    resumed = running(restore)
    for number in range(4, 7):
        resumed.step(PAIR, number)
    jax.tree.map(np.testing.assert_array_equal, resumed.items(), whole.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"decoupled": Decoupled()},
        {"score_levels": "random"},
        {"own": OwnContexts(sections=(2, 3), scored=2)},
        {"exits": "last", "grid": "published"},
        {"gan": Gan(start_step=1, heads=HEADS, crop=1.0)},
        {"gan": Gan(start_step=0, heads=HEADS, crop=1.0, separate=True, reals="generator", crops="independent", r2=1)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_variants_update_both_players(changes):
    run = running(ratio=1, **changes)
    before = {player: trained(run, player) for player in ("generator", "critic")}
    for number in (1, 2):
        metrics = {name: float(value) for name, value in run.step(PAIR, number).items()}
        assert metrics["generator/skipped"] == metrics["critic/skipped"] == 0
    assert all(changed(before[player], trained(run, player)) for player in before)


@pytest.mark.slow
def test_the_discriminator_is_trained_by_its_own_loss():
    """With ``separate``, its losses change the heads, and the fake score's adapters get the gradients they had."""
    gan = Gan(start_step=0, heads=HEADS, crop=1.0, separate=True, discriminator_weight=3.0, generator_weight=0.0)
    alone, together = running(ratio=1), running(ratio=1, gan=gan)
    heads = {path: array for path, array in trained(together, "critic").items() if "discriminator" in path}
    assert len(heads) == 52
    metrics = [run.step(PAIR, 1) for run in (alone, together)]
    assert float(metrics[0]["critic/loss"]) == pytest.approx(float(metrics[1]["critic/flow_loss"]), rel=1e-6)
    after = [trained(run, "critic") for run in (alone, together)]
    assert changed(heads, after[1])
    for path, array in after[0].items():
        np.testing.assert_allclose(array, after[1][path], atol=1e-6, err_msg=path)
    assert {"generator/gan/generator_loss", "critic/gan/r1", "critic/gan/real_logit"} <= metrics[1].keys()


@pytest.mark.slow
def test_scheduled_memory_changes_no_number():
    """After five steps of both players, everything is equal bit for bit, and networks wait in host memory."""
    gan = Gan(start_step=2, heads=HEADS, crop=1.0)
    runs = {memory: running(memory=memory, gan=gan) for memory in ("resident", "scheduled")}
    for run in runs.values():
        for number in range(1, 7):
            run.step(PAIR, number)
            if number == 3:  # as a validation does
                run.networks()
                report = run._residence.report()
                on_device = {name for name, held in report.items() if held.device}
                parked = {name for name, held in report.items() if held.host and not held.device}
                if run is runs["resident"]:
                    assert not parked
                else:
                    assert on_device == {"generator/frozen", "generator/average"}
                    assert {"critic/frozen", "critic/trainable", "generator/trainable"} <= parked
    jax.tree.map(np.testing.assert_array_equal, runs["resident"].items(), runs["scheduled"].items())
    held = runs["scheduled"]._residence.report()
    assert held["generator/frozen"].device == held["generator/moments"].device == held["critic/moments"].device == 0
    assert held["generator/frozen"].host > 0
    scheduled = runs["scheduled"]
    scheduled.release()
    assert scheduled._residence.names == ("generator/frozen", "generator/average")
    scheduled.networks()


class Counted(Distilling):
    """The order of updates without any network: the generator's only parameter is the number of its updates."""

    def __init__(self, ema: Ema) -> None:
        self._settings: Any = types.SimpleNamespace(ratio=5, gan=None)
        self._experiment: Any = types.SimpleNamespace(ema=ema)
        self._residence = Residence("resident")
        rate = optax.constant_schedule(1.0)
        updater = Updater(optimizer=optax.sgd(rate), learning_rates=rate, ema=ema)
        self._one = jax.jit(lambda player: updater.apply(player, {"p": -jnp.ones(())}, jnp.float32(0), average=True)[0])
        start = jax.tree.map(jnp.copy, updater.begin({"p": jnp.zeros(())}))
        for part, tree in _parts("generator", start).items():
            self._residence.hold(part, tree)

    def _update_generator(self, batch: Any, step: int) -> dict[str, Any]:
        self._put("generator", self._one(self._take("generator")))
        return {}

    def _update_critic(self, batch: Any, step: int) -> dict[str, Any]:
        return {}


def test_the_average_copies_750_times_and_then_counts_updates_of_the_generator():
    """Steps 0 to 749 count, then every fifth; update 751, the last copy, is at step 750, update 1001 at step 2000."""
    run, seen = Counted(Ema(decay=0.99, start=750)), []
    for number in range(1, 2002):
        run.step(PAIR, number)
        player = run._take("generator")
        seen.append([float(player.ema_count), float(player.trainable["p"]), float(player.ema["p"])])
    counts, params, averages = np.array(seen).T
    steps = np.arange(2001)
    np.testing.assert_array_equal(params, 1 + steps // 5)
    np.testing.assert_array_equal(counts, np.where(steps < 750, steps + 1, 751 + (steps - 750) // 5))
    np.testing.assert_array_equal(averages[:755], params[:755])
    assert averages[755] == pytest.approx(151 * 2 / 11 + 152 * 9 / 11, rel=1e-6)
    decay = (params[2000] - averages[2000]) / (params[2000] - averages[1999])
    assert decay == pytest.approx(251 / 260, abs=1e-4)  # 0.9654
    # The whole average as one sum: the weight of the parameters of each update, from the last copy on.
    n = np.arange(1, 251)
    decays = np.minimum((1 + n) / (10 + n), 0.99)
    weights = np.append(decays.prod(), (1 - decays) * np.append(np.cumprod(decays[::-1])[-2::-1], 1))
    assert averages[2000] == pytest.approx(weights @ np.arange(151, 402), rel=1e-5)


@pytest.mark.slow
def test_fresh_adapters_leave_fake_and_real_score_equal_bit_for_bit():
    """Without guidance the gradient of distribution matching is then exactly 0; with other adapters it is not."""
    run = running(guidance=0.0)
    keys = run._keys(np.int32(0), 16)
    scene, (section,) = run._roll_out("generator", PAIR.generator, keys, 0, None)
    critic, frozen = run._take("critic").trainable, run._residence.use("critic/frozen")
    cotangent, metrics = run._compare(critic, frozen, section.x, scene, keys, np.int32(0), level=None)
    assert float(metrics["dmd_gradient"]) == 0
    np.testing.assert_array_equal(cotangent, 0)
    other = jax.tree.map(lambda array: array + 0.05, critic)
    assert float(run._compare(other, frozen, section.x, scene, keys, np.int32(0), level=None)[1]["dmd_gradient"]) > 1e-3


@pytest.mark.slow
def test_first_chunks_are_amplified():
    """An empty context takes the route with twice the steps."""
    run = running(ratio=1)
    contexts = run._scene(
        run._encoders["generator"].params,
        run._encoders["critic"].params,
        run._negative,
        window(3, empty=True),
        run._keys(np.int32(0), 16),
    ).contexts
    routes, route_of = run._routes("generator", contexts, (0, 0))
    assert [len(plan.timesteps) for plan in routes[0].plans] == [4, 4, 4]
    assert len(routes) == 1
    np.testing.assert_array_equal(route_of, 0)
    mixed = dataclasses.replace(contexts, is_empty=jnp.array([True, False]))
    routes, route_of = run._routes("generator", mixed, (0, 0))
    assert [len(route.plans[0].timesteps) for route in routes] == [2, 4]
    np.testing.assert_array_equal(route_of, [1, 0])


def test_settings_are_checked():
    for changes, message in (
        ({"steps": (2, 2)}, "this model needs 3 numbers"),
        ({"ratio": 0}, "method.ratio=0"),
        ({"own": OwnContexts(), "score_levels": "random"}, "method.score_levels='last'"),
    ):
        with pytest.raises(ValueError, match=message):
            running(**changes)
