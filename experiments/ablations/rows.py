"""The rows: variants of the small model, as settings of the experiments.

A row is a chain of trainings (``Phase``) and a way to sample the last one's product. Rows share phases: those about the
context train stages 1 and 2 from the beginning, and all students start from the baseline's stage 2. A phase whose
product exists is not trained again.

The baseline has the recipe of ``stage1_init`` and ``stage2_init`` for the size, in which noise alone corrupts the past;
this makes it the row "noise alone" as well.
"""

import dataclasses

LAYOUTS = ("method.context.layout", "data.layout", "product.config.history")
"""The settings that hold the layout of the context in stages 1 and 2."""

TEACHER_STEPS, STUDENT_STEPS = (10, 10, 10), (2, 2, 2)
"""Network calls per level."""

GUIDANCE = 2.0
"""Of models that are not distilled."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """One training.

    Attributes:
        run: Its folder, ``row/phase``.
        experiment: The experiment file, in ``experiments/``.
        start: The run whose product it starts from; empty: random weights.
        score: The run whose product scores, in distribution matching.
        flags: Settings that differ from the experiment's.
    """

    run: str
    experiment: str
    start: str = ""
    score: str = ""
    flags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The last part of ``run``."""
        return self.run.rpartition("/")[2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One variant.

    Attributes:
        name: For files and tables.
        question: What it asks.
        phases: Its trainings, those that it shares included, in order.
        against: The row that it is compared with.
        steps: Network calls per level with which it is sampled.
        guidance: Its guidance scale; 1: none.
    """

    name: str
    question: str
    phases: tuple[Phase, ...]
    against: str = "baseline"
    steps: tuple[int, ...] = TEACHER_STEPS
    guidance: float = GUIDANCE


def layout(**settings: object) -> tuple[str, ...]:
    """Flags that change the layout of the context everywhere."""
    return tuple(f"--config.{place}.{name}={value}" for place in LAYOUTS for name, value in settings.items())


def stages(name: str, *flags: str) -> tuple[Phase, ...]:
    """Stages 1 and 2 with these flags."""
    first = Phase(run=f"{name}/stage1", experiment="stage1_init.py", flags=flags)
    return first, Phase(run=f"{name}/stage2", experiment="stage2_init.py", start=first.run, flags=flags)


_CORRUPTION, _SATURATION = "--config.method.context.corruption", "--config.method.context.saturation"

_FIRST, _SECOND = _BASELINE = stages("baseline")
_FULL = Phase(run="full_resolution/full", experiment="tiny_full_resolution.py", start=_FIRST.run)
_ODE = Phase(run="ode/ode", experiment="stage3_ode.py", start=_SECOND.run)
_CONSISTENCY = Phase(run="consistency/consistency", experiment="stage3_consistency.py", start=_SECOND.run)


def _distillation(row: str, experiment: str, *flags: str) -> tuple[Phase, ...]:
    """Distribution matching after ``_CONSISTENCY``."""
    last = Phase(run=f"{row}/distill", experiment=experiment, start=_CONSISTENCY.run, score=_FIRST.run, flags=flags)
    return *_BASELINE, _CONSISTENCY, last


def _student(name: str, question: str, phases: tuple[Phase, ...], against: str = "baseline") -> Row:
    return Row(name=name, question=question, phases=phases, against=against, steps=STUDENT_STEPS, guidance=1.0)


_ALL = (
    Row(name="baseline", question="The recipe, with noise on the past in training.", phases=_BASELINE),
    Row(
        name="no_anchor",
        question="Does the first frame in the context keep colours and identity? A more recent one takes its place.",
        phases=stages("no_anchor", *layout(keep_first_frame=False)),
    ),
    Row(
        name="no_corruption",
        question="Does corruption of the past in training prevent that errors add up?",
        phases=stages("no_corruption", f"{_CORRUPTION}=none"),
    ),
    Row(
        name="blur",
        question="Does blur alone do as well as noise alone?",
        phases=stages("blur", f"{_CORRUPTION}.blur=1.0"),
    ),
    Row(
        name="saturation",
        question="Do colour shifts alone do as well as noise alone?",
        phases=stages("saturation", f"{_CORRUPTION}=none", f"{_SATURATION}=build"),
    ),
    Row(
        name="all_corruptions",
        question="Noise on nine and blur on one of ten contexts, and colour shifts: are all better than noise alone?",
        phases=stages("all_corruptions", f"{_CORRUPTION}.blur=0.1", f"{_SATURATION}=build"),
    ),
    Row(
        name="absolute_positions",
        question="Do frame indices have to be relative to the chunk? Here they are the numbers of frames in the video.",
        phases=stages("absolute_positions", *layout(positions="absolute")),
    ),
    Row(
        name="short_only",
        question="Is the last frame, with the anchor, enough of a past?",
        phases=stages("short_only", *layout(sizes=(0, 0, 1))),
    ),
    Row(
        name="no_long",
        question="What does the long tier add to three recent frames and the anchor?",
        phases=stages("no_long", *layout(sizes=(0, 2, 1))),
    ),
    Row(
        name="full_resolution",
        question="What does the pyramid cost or save? Stage 1 goes on for the operations of stage 2, without levels.",
        phases=(_FIRST, _FULL),
        steps=(sum(TEACHER_STEPS),),
    ),
    _student("ode", "How far does regression of recorded trajectories reach in 2 steps per level?", (*_BASELINE, _ODE)),
    _student("consistency", "And consistency distillation, without recordings?", (*_BASELINE, _CONSISTENCY)),
    _student(
        "dmd",
        "Does distribution matching improve on consistency distillation, where it starts?",
        _distillation("dmd", "stage3_distill.py"),
        "consistency",
    ),
    _student(
        "dmd_gan",
        "Does a discriminator add detail?",
        _distillation("dmd_gan", "stage3_distill_gan.py"),
        "dmd",
    ),
    _student(
        "self_rollout",
        "Does a student that continues its own chunks in training, instead of real ones, drift less?",
        _distillation("self_rollout", "stage3_distill.py", "--config.method.own=build"),
        "dmd",
    ),
)

ROWS = {row.name: row for row in _ALL}
"""All rows by name; what a row is compared with comes before it."""


def rows_named(names: str) -> list[Row]:
    """Rows from a list with commas, or all of them.

    Raises:
        ValueError: There is no such row.
    """
    if names == "all":
        return list(_ALL)
    if unknown := [name for name in names.split(",") if name not in ROWS]:
        raise ValueError(f"there is no row {unknown[0]!r}; rows are {', '.join(ROWS)}, and all")
    return [ROWS[name] for name in names.split(",")]
