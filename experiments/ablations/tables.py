"""The tables of docs/ablations.md, in Markdown: the rows, what they cost, and how they differ."""

import re
from collections.abc import Mapping
from pathlib import Path

from helios_jax.experiments.ablations.bootstrap import Interval
from helios_jax.experiments.ablations.results import MEASURES, RowResult, difference, own
from helios_jax.experiments.ablations.rows import ROWS, Row
from helios_jax.safe_files import replace_text

NOTHING = "**No row has been run yet**, so there are no results to report."


def questions() -> str:
    """The rows and their questions."""
    lines = ["| row | question | compared with | settings |", "|---|---|---|---|"]
    for row in ROWS.values():
        reference = "" if row.name == row.against else f"`{row.against}`"
        lines.append(f"| `{row.name}` | {row.question} | {reference} | {settings(row)} |")
    return "\n".join(lines)


def settings(row: Row) -> str:
    """What makes a row a variant: its flags or its experiment."""
    flags = dict.fromkeys(flag.removeprefix("--config.") for phase in row.phases for flag in phase.flags)
    # The layout is set in data and product as well.
    own = [f"`{flag}`" for flag in flags if not flag.startswith(("data.layout", "product.config"))]
    return ", ".join([f"`experiments/{row.phases[-1].experiment}`", *own])


def results(rows: Mapping[str, RowResult]) -> str:
    """How rows differ from what they are compared with, what they cost, and how they came about."""
    if not rows:
        return NOTHING
    first = next(iter(rows.values()))
    count, chunks = len(first.facts["scenes"]), first.facts["chunks"]
    text = (
        f"{count} videos of {chunks} chunks. A cell has the mean over scenes and, below it, the difference from the "
        "row that it is compared with and its 95 % interval, in bold if the interval excludes 0. Minutes of training "
        "are those of the steps, of phases that a row shares too."
    )
    head = ["row", *(f"{measure.title} (best: {measure.best})" for measure in MEASURES)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows.values():
        reference = rows.get(row.facts["against"])
        cells = [_cell(row, reference, n) for n in range(len(MEASURES))]
        lines.append(f"| `{row.name}` | {' | '.join(cells)} |")
    return "\n\n".join([text, "\n".join(lines), costs(rows)])


def costs(rows: Mapping[str, RowResult]) -> str:
    """Costs and provenance of rows."""
    head = "| row | GFLOP a chunk | ms a chunk | minutes of training | of sampling | card | commit | seed | command |"
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    for row in rows.values():
        facts = row.facts
        minutes = [one for one in facts["training_minutes"].values() if one is not None]
        known = len(minutes) == len(facts["training_minutes"])
        trained = f"{sum(minutes):.1f}" if known else "not known"
        cells = [f"`{row.name}`", f"{facts['gflop_per_chunk']:.4g}", f"{facts['ms_per_chunk']:.3g}", trained]
        cells += [f"{facts['sampling_minutes']:.1f}", facts["card"], facts["commit"][:7] or "not known"]
        lines.append(f"| {' | '.join(cells)} | {facts['seed']} | `{facts['command']}` |")
    return "\n".join(lines)


def _cell(row: RowResult, reference: RowResult | None, number: int) -> str:
    measure = MEASURES[number]
    value = own(row, measure)
    if value.scenes == 0:
        return "not known"
    if reference is None or reference.name == row.name:
        return f"{value.mean:.3g} {_ends(value)}"
    change = difference(row, reference, measure)
    if change.scenes == 0:
        return f"{value.mean:.3g}"
    text = f"{change.mean:+.3g} {_ends(change)}"
    return f"{value.mean:.3g}<br>{f'**{text}**' if change.excludes_zero else text}"


def _ends(interval: Interval) -> str:
    return f"[{interval.low:.3g}, {interval.high:.3g}]"


def write_page(page: Path, rows: Mapping[str, RowResult]) -> None:
    """Replaces the generated parts of a page, between ``<!-- name -->`` and ``<!-- end of name -->``.

    Raises:
        ValueError: The page lacks one of them.
    """
    text = page.read_text(encoding="utf-8")
    for name, content in (("rows", questions()), ("results", results(rows))):
        text = replaced(text, name, content)
    replace_text(page, text)


def replaced(text: str, name: str, content: str) -> str:
    """A page with another content of one generated part. Raises ValueError if the page lacks it."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    changed, count = re.subn(
        f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{content}\n{end}", text, flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(f"the page needs {begin} and {end}, once, for its generated part")
    return changed
