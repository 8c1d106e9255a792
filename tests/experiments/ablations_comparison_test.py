"""Rows of the ablations are compared in pairs: intervals against closed forms, tables, plots and the page."""

import json
import math
import pathlib

import numpy as np
import pytest
import scipy.stats

from helios_jax.experiments.ablations import compare, run
from helios_jax.experiments.ablations.bootstrap import LEVEL, mean_interval, mean_intervals
from helios_jax.experiments.ablations.results import COMMITTED, MEASURES, difference, read_rows
from helios_jax.experiments.ablations.rows import ROWS
from helios_jax.experiments.ablations.tables import NOTHING, questions, replaced, results

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "ablations.md"


def test_intervals_of_coin_tosses_are_those_of_a_binomial():
    """With k ones of n values, a resample has a binomial number of ones, with n trials of probability k / n."""
    values = np.array([1.0] * 18 + [0.0] * 46)
    found = mean_interval(values, draws=40_000)
    tail = (1 - LEVEL) / 2
    chances = [math.comb(64, ones) * (18 / 64) ** ones * (46 / 64) ** (64 - ones) for ones in range(65)]
    ends = [int(np.searchsorted(np.cumsum(chances), chance)) / 64 for chance in (tail, 1 - tail)]
    assert (found.low, found.high) == tuple(ends)
    assert (found.mean, found.scenes) == (18 / 64, 64)
    assert found.excludes_zero


def test_intervals_are_those_of_scipy():
    values = np.random.default_rng(1).gamma(2.0, size=(64, 3))
    mean, low, high = mean_intervals(values)
    other = scipy.stats.bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", axis=0, random_state=2)
    np.testing.assert_allclose(mean, values.mean(0))
    np.testing.assert_allclose(low, other.confidence_interval.low, atol=0.02)
    np.testing.assert_allclose(high, other.confidence_interval.high, atol=0.02)
    # The spread of resampled means is the standard deviation over the root of n.
    normal = 1.96 * values.std(0) / 8
    np.testing.assert_allclose((high - low) / 2, normal, rtol=0.05)


def test_values_that_are_not_known_are_left_out():
    values = np.array([1.0, np.nan, 3.0, np.nan, 5.0])
    found = mean_interval(values)
    assert (found.mean, found.scenes) == (3.0, 3)
    assert 1.0 <= found.low < 3.0 < found.high <= 5.0
    assert not mean_interval(np.array([-1.0, 1.0, 2.0, -2.0])).excludes_zero
    assert math.isnan(mean_interval(np.full(4, np.nan)).low)
    with pytest.raises(ValueError, match="no scenes"):
        mean_interval(np.empty(0))


def test_the_page_is_made_from_the_rows_and_their_files():
    text = PAGE.read_text()
    found = read_rows([COMMITTED] if COMMITTED.is_dir() else [])
    assert replaced(replaced(text, "rows", questions()), "results", results(found)) == text
    assert (NOTHING in text) == (not found)
    with pytest.raises(ValueError, match="<!-- rows -->"):
        replaced("", "rows", "")


def result_of(name, values, **facts):
    """The file of a row in which every measure has these values."""
    row = ROWS[name]
    content = {"row": name, "against": row.against, "command": "run", "commit": "0123456789", "card": "none"}
    content |= {"size": "cpu", "seed": 0, "scenes": list(range(len(values))), "chunks": len(values[0])}
    content |= {"settings": {"world": 5, "stage1_steps": 300}}
    content |= {"gflop_per_chunk": 1.5, "ms_per_chunk": 20.0, "training_minutes": {"a": 1.0, "b": 2.5}}
    content |= {"sampling_minutes": 0.5, "values": {measure.name: values for measure in MEASURES}}
    return content | facts


def test_rows_are_compared_in_pairs(tmp_path, capsys):
    """Scenes differ by ten and rows by a tenth: the difference is known exactly, its interval has no width."""
    base = [[0.0, 10 * scene + 1.0, None, 10 * scene + 2.0] for scene in range(6)]
    other = [[0.0, 10 * scene + 1.0, 5.0, 10 * scene + 2.1] for scene in range(6)]
    for name, values in (("baseline", base), ("no_anchor", other)):
        (tmp_path / f"{name}.json").write_text(run.row_text(result_of(name, values)))
    found = read_rows([tmp_path])
    (late, *_), (everywhere,) = MEASURES, [one for one in MEASURES if one.name == "same_after_return"]
    change = difference(found["no_anchor"], found["baseline"], late)
    assert (change.mean, change.low, change.high) == pytest.approx((0.1, 0.1, 0.1))
    # Over all sampled chunks, the mean of the row has three values and that of the baseline two.
    expected = np.mean([(10 * s + 1 + 5 + 10 * s + 2.1) / 3 - (10 * s + 1.5) for s in range(6)])
    assert difference(found["no_anchor"], found["baseline"], everywhere).mean == pytest.approx(expected)
    assert compare.main(compare.parse(["compare", str(tmp_path)])) == 0
    printed = capsys.readouterr().out
    assert "27.1<br>**+0.1 [0.1, 0.1]**" in printed
    assert "| `no_anchor` | 1.5 | 20 | 3.5 | 0.5 | none | 0123456 | 0 | `run` |" in printed
    page = tmp_path / "page.md"
    page.write_text("<!-- rows -->\n<!-- end of rows -->\n<!-- results -->\noutdated\n<!-- end of results -->\n")
    assert compare.main(compare.parse(["compare", str(tmp_path), f"--page={page}"])) == 0
    assert "outdated" not in page.read_text()
    assert "27.1<br>**+0.1" in page.read_text()


@pytest.mark.parametrize(("chunks", "late"), [(2, [1]), (3, [2]), (4, [3]), (40, [*range(30, 40)])])
def test_the_last_quarter_of_the_chunks_counts(tmp_path, chunks, late):
    (tmp_path / "a.json").write_text(json.dumps(result_of("baseline", [[float(n**2) for n in range(chunks)]])))
    found = read_rows([tmp_path])["baseline"]
    assert found.of_scenes(MEASURES[0]).tolist() == [np.mean(np.square(late))]


@pytest.mark.slow
def test_plots_over_time(tmp_path):
    """A row next to what it is compared with, with the means of its scenes at every chunk."""
    values = np.random.default_rng(3).normal(size=(2, 5, 4)).tolist()
    for name, matrix in zip(("baseline", "no_anchor"), values, strict=True):
        (tmp_path / f"{name}.json").write_text(json.dumps(result_of(name, matrix)))
    found = read_rows([tmp_path])
    lines = compare.draw(found["no_anchor"], found).axes[1].lines
    assert [line.get_label() for line in lines] == ["baseline", "no_anchor"]
    for line, matrix in zip(lines, values, strict=True):
        np.testing.assert_allclose(line.get_ydata(), np.mean(matrix, axis=0))
    assert compare.main(compare.parse(["compare", str(tmp_path), f"--out={tmp_path / 'out'}"])) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"comparison.md", "baseline.png", "no_anchor.png"}


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"settings": {"world": 6}}, r"rows baseline and no_long have different world \(5 and 6\)"),
        ({"settings": {"world": 5, "stage1_steps": 9}}, r"different stage1_steps \(300 and 9\)"),
        ({"size": "gpu"}, r"different size \('cpu' and 'gpu'\)"),
        ({"row": "no_tier"}, "there is no row 'no_tier'"),
        ({"row": "baseline"}, "the row baseline is there twice"),
        ({"chunks": 5}, r"caption has \(2, 4\) values, not \(2, 5\)"),
        ({"values": {}}, "has no values of caption"),
        ({"row": "dmd"}, "does not say settings"),
    ],
)
def test_files_that_cannot_be_compared_are_refused(tmp_path, facts, message):
    values = [[1.0] * 4] * 2
    (tmp_path / "a.json").write_text(json.dumps(result_of("baseline", values)))
    other = result_of("no_long", values) | facts
    if message == "does not say settings":
        del other["settings"]
    (tmp_path / "b.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=message):
        read_rows([tmp_path])
