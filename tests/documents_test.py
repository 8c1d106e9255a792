"""The documents: paths and names exist, links resolve, and figures are those of benchmarks/results."""

import functools
import inspect
import json
import pathlib
import pkgutil
import re
import runpy

import pytest

from helios_jax import HeliosPipeline

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "benchmarks" / "README.md", *PAGES]
FIGURES = [
    ROOT / "README.md",
    ROOT / "docs" / "speed.md",
    ROOT / "docs" / "small_world.md",
    ROOT / "docs" / "data.md",
    ROOT / "docs" / "checkpoints.md",
]

TOP_LEVEL = (
    "helios_jax",
    "pallas_kernels",
    "data",
    "experiments",
    "benchmarks",
    "tests",
    "docs",
    "notebooks",
    "scripts",
)
MODULES = {
    "flow": "helios_jax.diffusion.flow",
    "pyramid": "helios_jax.diffusion.pyramid",
    "solvers": "helios_jax.diffusion.solvers",
    "vae": "helios_jax.models.vae",
}
"""Short names of modules in the documents."""

FIGURE = re.compile(r"[\s\d./-]*\d[\s\d./-]*")
"""A cell that holds nothing but figures."""

NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?")


def ids(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def spans(document: pathlib.Path) -> list[str]:
    """Everything in code font outside code blocks."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


@functools.cache
def files() -> tuple[str, ...]:
    """Paths of the project, from its root."""
    folders = [ROOT / name for name in TOP_LEVEL]
    paths = [path for folder in folders for path in (folder, *folder.rglob("*"))]
    paths += [path for path in ROOT.iterdir() if path.is_file()]
    return tuple(str(path.relative_to(ROOT)) for path in paths)


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(found.replace(",", "")) for found in NUMBER.findall(text))


def tables(document: pathlib.Path) -> list[tuple[list[str], list[str]]]:
    """Tables as (results files named since the previous table or heading, rows without the two header rows)."""
    found, named, rows = [], [], []
    for line in [*document.read_text().splitlines(), ""]:
        if line.startswith("|"):
            rows.append(line.replace("**", ""))
            continue
        if rows:
            found.append((named, rows[2:]))
            named, rows = [], []
        if line.startswith("#"):
            named = []
        named = named + re.findall(r"benchmarks/results/(\w+\.json)", line)
    return found


def recorded(name: str) -> list[tuple[float, ...]]:
    """The numbers of every row of a results file."""
    return [numbers(json.dumps(row)) for row in json.loads((RESULTS / name).read_text())["rows"]]


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids)
def test_paths_exist(document):
    missing = []
    for span in spans(document):
        path, _, test = span.partition("::")
        is_path = path.endswith(".py") or (path.split("/")[0] in TOP_LEVEL and "/" in path)
        if not is_path or re.search(r"[\s*<>=():]", path):
            continue
        path = path.rstrip("/")
        matches = [file for file in files() if file == path or (path.endswith(".py") and file.endswith("/" + path))]
        if not matches or (test and f"def {test}(" not in (ROOT / matches[0]).read_text()):
            missing.append(span)
    assert not missing, missing


def test_floors_are_those_of_the_layers_test():
    rooms = runpy.run_path(str(ROOT / "tests" / "layers_test.py"))["ROOMS"]
    floors = re.findall(r"^\| (\d) \| ([^|]+) \|", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE)
    stated = {path: int(floor) for floor, cell in floors for path in re.findall(r"`([^`]+)`", cell)}
    assert len(stated) > 20
    for path, floor in stated.items():
        name = path.removesuffix("/").removesuffix(".py").replace("/", ".")
        assert rooms[f"helios_jax.{name}" if name.startswith(("data", "experiments")) else name] == floor, path


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids)
def test_names_exist(document):
    missing = []
    for span in spans(document):
        name = re.sub(r"\(.*\)$", "", span)
        head = name.split(".")[0]
        if not re.fullmatch(r"\w+(\.\w+)+", name) or name.endswith(".py") or head not in (*MODULES, "helios_jax"):
            continue
        try:
            pkgutil.resolve_name(MODULES.get(head, head) + name.removeprefix(head))
        except (ImportError, AttributeError):
            missing.append(span)
    assert not missing, missing


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "pallas_kernels" / "README.md"], ids=ids)
def test_links_resolve(document):
    """Pages of docs/ link to each other only, so that the links hold on a code host and on the built site."""
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), target
        if document.parent == ROOT / "docs":
            assert file.is_relative_to(document.parent), f"{target} leads out of docs/"
        if anchor:
            headings = [heading.lower() for heading in re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)]
            assert anchor in [re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings], target


def test_arguments_for_users_of_diffusers_exist():
    page = (ROOT / "docs" / "from_diffusers.md").read_text()
    table = page[page.index("## Arguments of the call") : page.index("## Classes")]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    ours = {name for theirs, cell in rows for name in re.findall(r"`(\w+)", theirs if "same" in cell else cell)}
    assert len(rows) > 20
    assert ours - {"HistoryConfig"} <= set(inspect.signature(HeliosPipeline.stream).parameters)


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.name)
def test_results_say_where_they_come_from(file):
    result = json.loads(file.read_text())
    assert {"title", "card", "commit", "command", "conditions", "recorded_from", "columns", "rows"} <= set(result)
    assert {len(row) for row in result["rows"]} == {len(result["columns"])}


@pytest.mark.parametrize("document", FIGURES, ids=ids)
def test_tables_are_those_of_the_results(document):
    checked = 0
    for named, rows in tables(document):
        if not named:
            continue
        labels = [str(row[0]) for row in json.loads((RESULTS / named[-1]).read_text())["rows"]]
        known = list(zip(labels, recorded(named[-1]), strict=True))
        unknown = [row for row in rows if (row.split("|")[1].strip(), numbers(row)) not in known]
        assert not unknown, f"not in {named[-1]}: {unknown}"
        checked += 1
    assert checked


def test_every_table_of_the_kernels_has_its_results():
    known = {frozenset(recorded(file.name)) for file in RESULTS.glob("*.json")}
    checked = 0
    for _, rows in tables(ROOT / "pallas_kernels" / "README.md"):
        if not any(FIGURE.fullmatch(cell) for row in rows for cell in row.split("|")[2:-1]):
            continue  # a table of words
        table = frozenset(map(numbers, rows))
        assert any(table >= rows and len(table - rows) <= 1 for rows in known), rows  # a second row of the head
        checked += 1
    assert checked >= 12


def test_small_world_is_what_its_scores_say():
    scores = json.loads((ROOT / "experiments" / "results" / "tiny_gpu" / "scores.json").read_text())
    rows = json.loads((RESULTS / "small_world.json").read_text())["rows"]
    steps, guidance = scores["settings"]["steps"], scores["settings"]["guidance"]
    (sampled,) = (row for row in rows if row[:3] == ["stage 2", steps[0], guidance])
    for row, part in ((sampled, "sampled"), (rows[0], "vae")):
        names = ["recovered", *(f"recovered with {count}" for count in (1, 2, 3))]
        assert [int(re.findall(r"\((\d+) of", scores[part][name])[0]) for name in names] == row[3:]


def test_sizes_follow_from_the_parameters():
    *networks, together = json.loads((RESULTS / "published_sizes.json").read_text())["rows"]
    assert together[1:3] == [sum(column) for column in list(zip(*networks, strict=True))[1:3]]
    for _, _, parameters, float32, bfloat16 in (*networks, together):
        assert (float32, bfloat16) == (round(4e-9 * parameters, 2), round(2e-9 * parameters, 2))


def test_figures_in_the_text_of_the_readme():
    text = " ".join((ROOT / "README.md").read_text().split())
    inference, training, sizes = (
        {row[0]: row[1:] for row in json.loads((RESULTS / f"{name}.json").read_text())["rows"]}
        for name in ("inference", "training", "published_sizes")
    )
    (ours, peak), (peer, _), _ = next(iter(training.values()))
    also = json.loads((RESULTS / "inference.json").read_text())["also"]
    without = also["peak device memory without the text encoder, GB"]
    best = max(row[3] for row in json.loads((RESULTS / "small_world.json").read_text())["rows"][1:])
    figures = [
        "{} frames per second end to end on one H200 with one step per level, against {}".format(
            *inference["frames per second end to end, steps (1, 1, 1)"]
        ),
        f"{inference['peak device memory, GB'][0]} GB at the peak",
        f"{without} GB without the text encoder",
        f"takes {ours} s, against {peer} s",
        f"from {peak} GB",
        f"{sizes['together'][2]:.1f} GB per checkpoint",
        f"{sizes['together'][3]:.1f} GB more",
        f"in {best} of 256 videos",
    ]
    assert [figure for figure in figures if figure not in text] == []
