"""Where the device's time goes: kernels of a call, by the operation of the compiled program that launched them."""

import collections
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelTime:
    """One row of a profile.

    Attributes:
        op: Operation of the compiled program.
        kernel: Name of the kernel, truncated.
        launches: Launches per call.
        ms: Milliseconds per call.
    """

    op: str
    kernel: str
    launches: float
    ms: float


def profile(call: Callable[[], Any], repeats: int = 3) -> list[KernelTime]:
    """Device time of ``call`` by kernel, longest first, after one warm-up call."""
    jax.block_until_ready(call())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(repeats):
                jax.block_until_ready(call())
        (file,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
    totals: dict[tuple[str, str], list[float]] = collections.defaultdict(lambda: [0, 0.0])
    for plane in data.planes:
        if not plane.name.startswith("/device:GPU"):
            continue
        for line in plane.lines:
            if not line.name.startswith("Stream"):
                continue
            for event in line.events:
                stats = dict(event.stats)
                row = totals[str(stats.get("hlo_op", "")), event.name[:90]]
                row[0] += 1
                row[1] += event.duration_ns
    rows = [
        KernelTime(op=op, kernel=kernel, launches=count / repeats, ms=ns / repeats / 1e6)
        for (op, kernel), (count, ns) in totals.items()
    ]
    return sorted(rows, key=lambda row: -row.ms)
