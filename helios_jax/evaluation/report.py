"""The report: one HTML file with scores, curves along the videos and frames of the first ones.

It holds everything it shows: pictures as data, curves as SVG, and no script.
"""

import base64
import html
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from helios_jax.evaluation.plots import COLOURS, plots
from helios_jax.evaluation.records import Record, Records
from helios_jax.evaluation.runner import SHOWN, Part
from helios_jax.evaluation.suites.base import Table
from helios_jax.version import __version__

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 78em; padding: 0 1em; color: #222 }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; margin: 0 2em 1em 0; display: inline-table; vertical-align: top }
caption { text-align: left; font-weight: 600; padding-bottom: .3em }
td, th { padding: .15em .8em .15em 0; text-align: left; border-bottom: 1px solid #eee; font-weight: normal }
td:last-child { font-variant-numeric: tabular-nums }
figure { display: inline-block; margin: 0 1em 1em 0 } figure svg { display: block }
figcaption { font-weight: 600; font-size: .9em }
.strip { display: block; margin: 0 0 1em } .strip img { max-width: 100%; image-rendering: pixelated; display: block }
.strip span { color: #666; font-size: .85em } .key { margin-right: 1.2em }
"""


def report(
    title: str,
    settings: Mapping[str, Any],
    tables: Sequence[Table],
    parts: Sequence[Part],
    found: Mapping[str, Sequence[Record]],
    records: Records,
) -> str:
    """The report as HTML.

    Args:
        title: Its heading.
        settings: What was evaluated and how.
        tables: The scores.
        parts: The videos.
        found: Their records, by part.
        records: Where pictures of the first videos are.
    """
    shown = ", ".join(f"{name}={_short(value)}" for name, value in settings.items() if value not in (None, [], {}))
    blocks = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(shown)}</p>", "<h2>Scores</h2>"]
    blocks += [_table(*table) for table in tables]
    blocks += ["<h2>Curves</h2>", _key(list(found)), *plots(found)]
    for part in parts:
        strips = [
            _strip(video.name, video.prompt, records.shown(part.name, video.name)) for video in part.videos[:SHOWN]
        ]
        if strips := [strip for strip in strips if strip]:
            blocks += [f"<h2>Frames: {html.escape(part.name)}</h2>", *strips]
    body = "\n".join(blocks)
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    foot = f"<p>Written by helios_jax {__version__}.</p>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n{foot}\n</body></html>\n'


def _table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
    return f"<table><caption>{html.escape(title)}</caption>{cells}</table>"


def _key(names: Sequence[str]) -> str:
    entries = zip(names, itertools.cycle(COLOURS), strict=False)
    lines = [
        f'<span class="key"><b style="color:{colour}">&mdash;</b> {html.escape(n)}</span>' for n, colour in entries
    ]
    grey = "thin lines: single videos; bold lines: means; vertical lines: borders of chunks"
    return f"<p>{''.join(lines)}<br>{grey}</p>"


def _strip(name: str, prompt: str | None, file: Path) -> str:
    if not file.is_file():
        return ""
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    text = html.escape(f"{name}: {prompt}" if prompt else name)
    return f'<div class="strip"><span>{text}</span><img alt="{text}" src="data:image/png;base64,{data}"></div>'


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
