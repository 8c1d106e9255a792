"""The command helios-convert."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
from huggingface_hub.utils import SafetensorsFileMetadata, TensorInfo
from safetensors.numpy import load_file, save_file

from helios_jax import convert

DATA = pathlib.Path(__file__).parent / "parity" / "data"
PARTS = {"transformer": "transformer/published", "vae": "vae/wan", "text_encoder": "text_encoder/wide"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """A checkpoint in the published layout, put together from recorded parts."""
    folder = tmp_path_factory.mktemp("checkpoint") / "helios"
    for name, source in PARTS.items():
        shutil.copytree(DATA / source / name, folder / name)
    shutil.copytree(DATA / "text_encoder" / "tokens" / "tokenizer", folder / "tokenizer")
    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": "HeliosDMDScheduler", "stages": 3, "unknown_to_us": [1, 2]}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {"_class_name": "HeliosPyramidPipeline", "is_distilled": True, "vae": ["diffusers", "AutoencoderKLWan"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def headers(folder: pathlib.Path) -> dict[str, dict]:
    """Tensor name -> dtype, shape and content of every file, by the definition of the file format."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        content = file.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        for name, info in json.loads(content[8:start]).items():
            if name != "__metadata__":
                low, high = info.pop("data_offsets")
                tensors[name] = info | {"content": content[start + low : start + high]}
    return tensors


def files(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def call(*arguments: object) -> int:
    return convert.main(convert.parse(["helios-convert", *map(str, arguments)]))


@pytest.mark.slow
def test_published_to_orbax_and_back_is_byte_equal(folder, tmp_path, capsys):
    assert call("to-orbax", folder, tmp_path / "orbax") == 0
    assert not list((tmp_path / "orbax").rglob("*.safetensors"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == ["transformer", "text_encoder", "vae"]
    assert lines[-1] == f"wrote {tmp_path / 'orbax'}"
    size = sum(len(info["content"]) for info in headers(folder / "transformer").values())
    assert lines[0].startswith(f"transformer: {size // 4:,} parameters in 44 arrays, {size / 1000:.4g} kB, ")

    assert call("to-diffusers", tmp_path / "orbax", tmp_path / "back") == 0
    for name in PARTS:
        assert headers(tmp_path / "back" / name) == headers(folder / name)
    for copied in ("tokenizer", "scheduler"):
        assert files(tmp_path / "back" / copied) == files(folder / copied)
    assert (tmp_path / "back" / "model_index.json").read_bytes() == (folder / "model_index.json").read_bytes()


def test_dtype_rounds_all_but_the_fp32_parameters(folder, tmp_path):
    assert call("to-diffusers", folder, tmp_path / "half", "--dtype=bfloat16") == 0
    half = load_file(tmp_path / "half" / "transformer" / "diffusion_pytorch_model.safetensors")
    full = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert half.keys() == full.keys()
    kept = {name for name, tensor in half.items() if tensor.dtype == np.float32}
    assert kept == {
        name
        for name in full
        if "norm2" in name or "scale_shift_table" in name or name.startswith("condition_embedder.time_embedder")
    }
    for name, tensor in half.items():
        expected = full[name] if name in kept else full[name].astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(tensor, expected)


def test_merge_lora_writes_what_diffusers_fuses(folder, tmp_path):
    lora = DATA / "lora" / "diffusers.safetensors"
    assert call("merge-lora", folder, lora, tmp_path / "full", "--scale=0.7") == 0
    merged = load_file(tmp_path / "full" / "transformer" / "diffusion_pytorch_model.safetensors")
    for name, expected in np.load(DATA / "lora" / "diffusers.npz").items():
        if name != "output":
            np.testing.assert_allclose(merged[name], expected, rtol=0, atol=1e-6)
    assert headers(tmp_path / "full" / "vae") == headers(folder / "vae")

    # To another dtype: merged first, rounded afterwards.
    assert call("merge-lora", folder, lora, tmp_path / "half", "--scale", "0.7", "--dtype=bfloat16") == 0
    half = load_file(tmp_path / "half" / "transformer" / "diffusion_pytorch_model.safetensors")
    for name in ("blocks.1.ffn.net.2.weight", "patch_mid.weight", "proj_out.bias"):
        np.testing.assert_array_equal(half[name], merged[name].astype(ml_dtypes.bfloat16))
    name = "condition_embedder.time_embedder.linear_1.weight"
    np.testing.assert_array_equal(half[name], merged[name])
    assert half[name].dtype == np.float32


@pytest.mark.slow
def test_merge_lora_keeps_the_layout(folder, tmp_path):
    convert.convert(str(folder), tmp_path / "orbax", "orbax")
    assert call("merge-lora", tmp_path / "orbax", DATA / "lora" / "wan.safetensors", tmp_path / "merged") == 0
    assert {summary.layout for summary in convert.summarise(str(tmp_path / "merged")).values()} == {"orbax"}


def test_inspect_counts_what_the_headers_say(folder, tmp_path, capsys):
    convert.convert(str(folder), tmp_path / "orbax", "orbax")
    capsys.readouterr()
    for source, layout in ((folder, "diffusers"), (tmp_path / "orbax", "orbax")):
        assert call("inspect", source) == 0
        title, *lines = capsys.readouterr().out.splitlines()
        assert title.split() == ["network", "layout", "tensors", "parameters", "size", "dtypes"]
        for line, name in zip(lines, ("transformer", "text_encoder", "vae"), strict=False):
            expected = headers(folder / name)
            [stored] = {info["dtype"] for info in expected.values()}
            size, dtype = (
                sum(len(info["content"]) for info in expected.values()),
                {"F32": "float32", "BF16": "bfloat16"},
            )
            assert line.split()[:2] == [name, layout]
            assert line.split()[3] == f"{size // (4 if stored == 'F32' else 2):,}"
            assert line.split()[4:] == [f"{size / 1000:.4g}", "kB", dtype[stored]]
            if layout == "diffusers":
                assert line.split()[2] == str(len(expected))
        text = " ".join("\n".join(lines).split())
        assert "pipeline: HeliosPyramidPipeline is_distilled=True" in text
        assert "scheduler: HeliosDMDScheduler stages=3" in text
        assert "transformer: HeliosTransformer3DModel" in text
        assert "num_layers=3" in text


def test_inspect_reads_headers_only(folder, tmp_path):
    """Sparse files of the right length, without any weights, do as well."""
    shutil.copytree(folder, tmp_path / "hollow")
    for file in (tmp_path / "hollow").rglob("*.safetensors"):
        size = file.stat().st_size
        with file.open("r+b") as handle:
            start = 8 + int.from_bytes(handle.read(8), "little")
            handle.truncate(start)
            handle.truncate(size)
    assert convert.summarise(str(tmp_path / "hollow")) == convert.summarise(str(folder))


def test_inspect_of_a_hub_id_fetches_no_weights(folder, tmp_path, monkeypatch):
    remote = tmp_path / "snapshot"
    shutil.copytree(folder, remote, ignore=shutil.ignore_patterns("*.safetensors"))
    stored = {
        f"{name}/{file.name}": SafetensorsFileMetadata(
            metadata={},
            tensors={
                tensor: TensorInfo(dtype=info["dtype"], shape=info["shape"], data_offsets=(0, 0))
                for tensor, info in headers(folder / name).items()
            },
        )
        for name in PARTS
        for file in (folder / name).glob("*.safetensors")
    }

    def snapshot_download(repo, *, allow_patterns, **_):
        assert not any(pattern.endswith(("*", ".safetensors")) for pattern in allow_patterns)
        return str(remote)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repo: list(stored))
    monkeypatch.setattr(huggingface_hub, "parse_safetensors_file_metadata", lambda repo, name: stored[name])
    assert convert.summarise("someone/helios") == convert.summarise(str(folder))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "{tmp}/nowhere"), "is neither a folder nor a hub id"),
        (("inspect", "{tmp}"), "is not a (finished) checkpoint: model_index.json and transformer, text_encoder, vae"),
        (("to-orbax", "{folder}", "{folder}"), "exists and is not empty; choose another folder"),
        (("merge-lora", "{folder}", "{tmp}/x.safetensors", "{tmp}/out"), "no LoRA file"),
    ],
)
def test_user_errors_are_one_line_and_change_nothing(folder, tmp_path, capsys, arguments, message):
    before = files(folder)
    assert call(*(argument.format(tmp=tmp_path, folder=folder) for argument in arguments)) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("helios-convert: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert files(folder) == before
    assert list(tmp_path.iterdir()) == []


def test_targets_that_cannot_be_made(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for target, message in (
        (folder / "inside", "is only read; choose a folder outside"),
        (tmp_path / "file" / "a" / "b", f"{tmp_path / 'file'} is a file"),
        (tmp_path / "file", "exists and is not empty"),
    ):
        assert call("to-orbax", folder, target) == 1
        assert message in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"
    assert not (folder / "inside").exists()


@pytest.mark.parametrize("scale", ["nan", "inf", "1e999", "two"])
def test_scales_are_checked_first(tmp_path, capsys, scale):
    with pytest.raises(SystemExit):
        call("merge-lora", tmp_path / "nowhere", tmp_path / "x.safetensors", tmp_path / "out", f"--scale={scale}")
    assert "--scale" in capsys.readouterr().err


def test_weights_that_overflow_are_named(folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "large", ignore=shutil.ignore_patterns("text_encoder", "vae"))
    file = tmp_path / "large" / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["proj_out.bias"][:3] = 1e5
    save_file(tensors, file)
    assert call("to-diffusers", tmp_path / "large", tmp_path / "out", "--dtype=float16") == 1
    error = capsys.readouterr().err
    assert "transformer: the parameter proj_out.bias holds NaN, infinity or values beyond 1e+06" in error
    assert "or as float16" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large"]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["to-diffusers", "to-orbax"])
def test_a_full_disk_leaves_nothing(folder, tmp_path, command):
    """Files cannot grow beyond 100 kB, which fails as a full disk does."""
    code = (
        "import resource, signal, sys; from helios_jax import convert; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
        "sys.exit(convert.main(convert.parse(['helios-convert', *sys.argv[1:]])))"
    )
    line = [sys.executable, "-c", code, command, str(folder), str(tmp_path / "out")]
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("explode",),
        ("to-orbax", "a"),
        ("to-orbax", "a", "b", "--dtype=int8"),
        ("inspect", "a", "b"),
        ("to-orbax", "a", "b", "--dtpe=x"),
    ],
)
def test_wrong_usage_exits_with_two(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        call(*arguments)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("helios-convert")
    assert error.count("\n") == 1


def test_command_line_end_to_end(folder, tmp_path):
    """Help imports nothing heavy; exit codes and streams are those of a command."""

    def command(*arguments: object) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-X", "importtime", "-m", "helios_jax.convert", *map(str, arguments)]
        return subprocess.run(line, env=os.environ, capture_output=True, text=True)

    helped = command("--help")
    assert helped.returncode == 0
    for name in ("inspect", "to-orbax", "to-diffusers", "merge-lora"):
        assert name in helped.stdout
    imported = {line.rpartition("|")[2].strip() for line in helped.stderr.splitlines()}
    assert "absl.app" in imported
    assert not imported & {"jax", "flax", "numpy", "orbax", "safetensors", "huggingface_hub", "tokenizers"}

    failed = command("to-diffusers", folder, folder)
    errors = [line for line in failed.stderr.splitlines() if not line.startswith("import time:")]
    assert (failed.returncode, failed.stdout) == (1, "")
    assert errors == [f"helios-convert: {folder} exists and is not empty; choose another folder or remove it first"]
