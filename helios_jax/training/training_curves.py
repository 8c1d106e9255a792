"""Curves of distillation for the sheet of a validation: what the log of the run says of generator and critic.

A critic that falls behind, or a discriminator that wins, shows here before it shows in videos: the gradient of
distribution matching grows, the critic's loss rises in a band of timesteps, the logits part, or one player's updates
dwarf the other's.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

Records = Mapping[int, Mapping[str, float]]
"""Metrics by step, as ``read_metrics`` gives them."""

Curve = list[tuple[int, float]]
"""Values by step."""

PANELS: dict[str, tuple[tuple[str, str], ...]] = {
    "gradient of matching (rms)": (("generator/dmd_gradient", "generator"),),
    "critic's loss by timestep": (("critic/loss_", ""),),
    "logits": (
        ("critic/gan/real_logit", "data"),
        ("critic/gan/fake_logit", "samples"),
        ("generator/gan/generator_logit", "samples, generator's step"),
    ),
    "penalties": (("critic/gan/r1", "R1"), ("critic/gan/r2", "R2")),
    "norm of the updates": (("generator/update_norm", "generator"), ("critic/update_norm", "critic")),
}
"""Metrics of each panel with their labels. A name that ends with "_" stands for all that begin with it."""

LOGARITHMIC = ("penalties", "norm of the updates")
"""Panels of which the values span orders of magnitude."""


def curves_of(records: Records) -> dict[str, dict[str, Curve]]:
    """The finite values of each panel by label; panels and labels without any are left out."""
    found: dict[str, dict[str, Curve]] = {}
    for panel, metrics in PANELS.items():
        for step, values in sorted(records.items()):
            for name, value in values.items():
                label = _label(name, metrics)
                if label is not None and math.isfinite(value):
                    found.setdefault(panel, {}).setdefault(label, []).append((step, value))
    return found


def _label(name: str, metrics: tuple[tuple[str, str], ...]) -> str | None:
    """The label of a metric in a panel; ``None`` if it does not belong there."""
    for metric, label in metrics:
        if name == metric:
            return label
        if metric.endswith("_") and name.startswith(metric):
            return name.removeprefix(metric).replace("_", " to ")
    return None


def draw_curves(figure: "Figure | SubFigure", curves: Mapping[str, Mapping[str, Curve]]) -> None:
    """Draws a panel for each entry of ``curves_of``, next to each other."""
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for panel, (title, lines) in zip(panels, curves.items(), strict=True):
        for label, curve in lines.items():
            steps, values = zip(*curve, strict=True)
            panel.plot(steps, values, label=label, linewidth=1, marker="." if len(curve) < 10 else None)
        if title in LOGARITHMIC and all(value > 0 for curve in lines.values() for _, value in curve):
            panel.set_yscale("log")
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("step", fontsize=8)
        panel.tick_params(labelsize=7, which="both")
        if len(lines) > 1:
            panel.legend(fontsize=6)
