"""A student of the size helios_tiny becomes package data, is found by its name, samples, and is evaluated."""

import json
import pathlib
import sys

import ml_dtypes
import numpy as np
import pytest

from helios_jax import HeliosPipeline, convert, evaluate, load_diffusers
from helios_jax.checkpoints import shipped
from helios_jax.checkpoints.tensor_files import TensorFolder
from helios_jax.experiments import ship_tiny
from helios_jax.experiments.tiny_card import Difference, card

PARITY = pathlib.Path(__file__).parents[1] / "parity"
RECORDED = PARITY / "data" / "shipped"
sys.path.insert(0, str(PARITY))

from make_random_tiny import write_product  # noqa: E402
from named_draws import NamedDraws  # noqa: E402


@pytest.fixture(scope="module")
def product(tmp_path_factory) -> pathlib.Path:
    """The product of a run with a score, in fp32 and with random weights."""
    run = tmp_path_factory.mktemp("run")
    product = run / "gan" / "product" / "7"
    write_product(product)
    (run / "gan" / "config.json").write_text('{"seed": 46, "steps": 7, "batch_size": 32}')
    scores = run / "artefacts" / "gan-2-2-2"
    scores.mkdir(parents=True)
    settings = {"steps": [2, 2, 2], "world": 1000, "videos": 256}
    rates = {"sampled": {"recovered": "93.0 % (238 of 256)"}, "vae": {"recovered": "99.2 % (254 of 256)"}}
    (scores / "scores.json").write_text(json.dumps({"settings": settings, **rates}))
    return product


@pytest.fixture(scope="module")
def package(product, tmp_path_factory):
    """A folder of shipped checkpoints with this one, where the package looks for them."""
    weights = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipped, "package_folder", lambda: weights)
        patch.setattr(ship_tiny, "CHUNKS", 1)
        folder = weights / "helios-tiny"
        difference = ship_tiny.ship(product, folder, commit="abc1234", hardware="one H100, 55 minutes")
        yield folder, difference


@pytest.mark.slow
def test_the_folder_is_complete_and_says_where_it_comes_from(package, product):
    folder, difference = package
    assert {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} == ship_tiny.FILES
    assert 23e6 < shipped.check_sizes(folder) <= 25e6
    # Each weight is that of the product, rounded once; what is published in fp32 stays.
    for name in ("transformer", "vae", "text_encoder"):
        with TensorFolder(folder / name) as files, TensorFolder(product / name) as trained:
            assert files.tensors.keys() == trained.tensors.keys()
            for tensor, info in files.tensors.items():
                expected = trained.read(tensor)
                if info.dtype != np.float32:
                    expected = expected.astype(ml_dtypes.bfloat16)
                np.testing.assert_array_equal(files.read(tensor), expected)
    text = (folder / "README.md").read_text()
    assert str(difference) in text
    assert difference.dtype == "float32"
    assert 0 < difference.first_chunk == difference.video < 5
    for words in (
        "phase `gan`; commit abc1234; one H100, 55 minutes",
        "| gan | 46 | 7 | 32 |",
        "| 2, 2, 2 | 1000 | 256 | 93.0 % (238 of 256) | 99.2 % (254 of 256) |",
        "11.6M in bfloat16: transformer 7.8M, VAE 2.6M, text encoder 1.2M",
    ):
        assert words in text


@pytest.mark.slow
def test_its_name_is_enough(package, tmp_path, capsys):
    """To sample at its own size, to be inspected and to be evaluated in its own style, by one fixed command."""
    folder, _ = package
    assert shipped.default_checkpoint() == "helios-tiny"
    assert load_diffusers("helios-tiny", "vae").config.base_dim == 16
    assert convert.main(convert.parse(["helios-convert", "inspect", "helios-tiny"])) == 0
    shown = capsys.readouterr().out
    assert "is_distilled=True" in shown
    assert "bfloat16" in shown
    command = ["helios-evaluate", "--model=helios-tiny", "--suite=moving_shapes", "--videos=1", "--num_frames=33"]
    command += ["--world=77", "--steps=2,2,2", "--processes=1", "--batch=1", f"--out={tmp_path / 'scores'}"]
    assert evaluate.main(evaluate.parse(command)) == 0
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert 0 <= scores["sampled"]["recovered_rate"] <= scores["vae"]["recovered_rate"] <= 1
    assert scores["settings"]["style"] == "textured"
    assert scores["settings"]["max_text_tokens"] == 112
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        ship_tiny.ship(folder, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["random", "helios-tiny"])
def test_diffusers_makes_the_same_latents(name, request):
    """Both compute the shipped weights in float32 (tests/parity/record_shipped.py)."""
    if name == "random":
        model, _ = request.getfixturevalue("package")
    else:
        model = pathlib.Path(shipped.__file__).parents[1] / "weights" / name
        if not model.is_dir() or not (RECORDED / f"{name}.npz").is_file():
            pytest.skip(f"{name} is not shipped yet, or not recorded")
    case = json.loads((RECORDED / f"{name}.json").read_text())
    pipe = HeliosPipeline.from_pretrained(model, dtype="auto", vae_dtype="auto")
    draws = NamedDraws(case["seed"])
    out = pipe(case["prompt"], num_frames=66, steps=(2, 2, 2), amplify_first_chunk=True, noise=draws, progress=False)
    with np.load(RECORDED / f"{name}.npz") as file:
        recorded = dict(file)
    error = np.linalg.norm(out.latents - recorded["latents"]) / np.linalg.norm(recorded["latents"])
    assert error <= 1e-4  # 1e-6 with random weights
    assert out.frames.shape[1] == recorded["num_frames"]
    assert np.abs(out.frames[:, ::12].astype(np.float32) - recorded["frames"]).mean() <= 0.1


def test_what_is_not_a_student_is_refused(tmp_path):
    mid = PARITY / "data" / "pipelines"
    for part in (mid / "checkpoint").iterdir():
        (tmp_path / part.name).symlink_to(part)
    for file in (mid / "mid").rglob("*.json"):
        target = tmp_path / file.relative_to(mid / "mid")
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=r"is not a distilled checkpoint .* give the product of stage 3"):
        ship_tiny.ship(tmp_path, tmp_path.with_name("out"))
    assert not tmp_path.with_name("out").exists()


def test_a_card_leaves_out_what_the_run_does_not_have(tmp_path):
    folder = tmp_path / "run" / "gan" / "product" / "7"
    folder.mkdir(parents=True)
    checkpoint = PARITY / "data" / "pipelines"
    for part in [*(checkpoint / "checkpoint").iterdir(), *(checkpoint / "distilled").iterdir()]:
        (folder / part.name).symlink_to(part)
    text = card(folder, folder, Difference(dtype="float32", first_chunk=0.25, video=1.5, frames=132))
    assert "0.25 of 255 on average in the first chunk, 1.50 over 132 frames" in text
    assert "## Training" not in text
    assert "## Scores" not in text
    assert "commit" not in text
