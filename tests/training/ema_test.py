"""Moving averages: the table of decays that the published rule gives, and that averages follow it."""

import jax.numpy as jnp
import numpy as np
import pytest

from helios_jax.training.ema import Ema


@pytest.mark.parametrize(
    ("count", "decay"),
    [
        (1, 0.0),
        (750, 0.0),
        (751, 0.0),  # n = 0: the last plain copy
        (752, 2 / 11),
        (753, 3 / 12),
        (761, 11 / 20),
        (1001, 251 / 260),  # n = 250, about .965
        (1641, 0.99),  # n = 890: 891 / 900
        (1640, 890 / 899),
        (100_000, 0.99),
    ],
)
def test_decay_of_the_published_run(count, decay):
    assert float(Ema(decay=0.99, start=750).decay_at(count)) == pytest.approx(decay, rel=1e-6)


def test_average_copies_then_lags():
    ema = Ema(decay=0.99, start=2)
    average = {"a": jnp.zeros(2)}
    for count, expected in ((1, 1.0), (2, 2.0), (3, 3.0), (4, 3 * 2 / 11 + 4 * 9 / 11)):
        average = ema.update(average, {"a": jnp.full(2, float(count))}, jnp.int32(count))
        np.testing.assert_allclose(average["a"], expected, rtol=1e-6)


@pytest.mark.parametrize("settings", [{"decay": 1.0}, {"decay": -0.1}, {"start": -1}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match="0 <= decay < 1"):
        Ema(**settings)
