"""Settings from experiment files and the command line."""

import dataclasses
import importlib
import json
from typing import Literal

import pytest

from helios_jax.train import parse
from helios_jax.training.ema import Ema
from helios_jax.training.experiment import Lora
from helios_jax.training.injection import ContextDrop, Injection
from helios_jax.training.overrides import as_json, frozen, mutable

EXPERIMENTS = [
    *(("stage1_init", size) for size in ("14b", "1_3b", "tiny")),
    *(("stage1_post", size) for size in ("14b", "1_3b")),
    *(("stage1_post_corrected", size) for size in ("14b", "1_3b")),
    *(("stage2_init", size) for size in ("14b", "1_3b", "tiny")),
    *(("stage2_post", size) for size in ("14b", "1_3b")),
    *((name, size) for name in ("stage3_ode", "stage3_consistency") for size in ("14b", "1_3b", "tiny")),
    ("tiny_vae", "images"),
    ("tiny_vae", "clips"),
]


def config(name, size):
    return importlib.import_module(f"helios_jax.experiments.{name}").get_config(size)


@pytest.mark.parametrize(("name", "size"), EXPERIMENTS)
def test_experiments_survive_the_way_to_the_command_line_and_back(name, size):
    mirror = config(name, size)
    experiment = frozen(mirror)
    assert frozen(mutable(experiment)) == experiment
    assert mirror.optimizer.learning_rate == experiment.optimizer.learning_rate
    json.dumps(as_json(experiment))


@pytest.mark.parametrize(
    ("name", "rate", "warmup", "rank", "seed", "ratios"),
    [
        ("stage1_init", 5e-5, 0, 128, 43, None),
        ("stage1_post", 3e-5, 0, 128, 44, None),
        ("stage2_init", 1e-4, 1000, 256, 45, (1, 2, 1)),
        ("stage2_post", 3e-5, 500, 256, 46, (1, 1, 1)),
    ],
)
def test_published_values(name, rate, warmup, rank, seed, ratios):
    """Table of the published recipes (arXiv 2603.04379 and its configuration files)."""
    experiment = frozen(config(name, "14b"))
    adamw = experiment.optimizer
    assert (adamw.learning_rate, adamw.warmup_steps, adamw.schedule) == (rate, warmup, "constant")
    assert (adamw.betas, adamw.eps, adamw.weight_decay, adamw.clip_norm) == ((0.9, 0.999), 1e-8, 1e-4, 1.0)
    assert (experiment.lora.rank, experiment.lora.alpha or rank, experiment.seed) == (rank, rank, seed)
    assert experiment.method.context == Injection.published()
    assert experiment.method.context.drop == ContextDrop(t2v=0.4, i2v=0.0, v2v=0.4)
    assert getattr(experiment.method, "ratios", None) == ratios
    assert experiment.ema is None


def test_corrected_recipe():
    context = frozen(config("stage1_post_corrected", "14b")).method.context
    assert context.drop == ContextDrop(t2v=0.4, i2v=0.1, v2v=0.4)
    assert context.saturation is not None
    assert context == Injection()


def arguments(tmp_path, *overrides):
    return parse(["helios-train", "--config=stage2_init.py:14b", f"--workdir={tmp_path}", *overrides])


def test_overrides_reach_the_frozen_settings(tmp_path):
    found = arguments(
        tmp_path,
        "--config.optimizer.learning_rate=3e-5",
        "--config.method.ratios=(1,1,1)",
        "--config.method.context.drop.i2v=0.1",
        "--config.lora.excludes=('transformer/.*',)",
        "--config.trainable=(('.*', 1),)",
        "--config.validation=none",
        "--config.start.folder=/somewhere",
        "--config.optimizer.weight_decay=0",
        "--config.method.context.decide=batch",
    ).experiment
    base = frozen(config("stage2_init", "14b"))
    drop = dataclasses.replace(base.method.context.drop, i2v=0.1)
    context = dataclasses.replace(base.method.context, drop=drop, decide="batch")
    assert found == dataclasses.replace(
        base,
        optimizer=dataclasses.replace(base.optimizer, learning_rate=3e-5, weight_decay=0.0),
        method=dataclasses.replace(base.method, ratios=(1, 1, 1), context=context),
        lora=dataclasses.replace(base.lora, excludes=("transformer/.*",)),
        trainable=((".*", 1),),
        validation=None,
        start=dataclasses.replace(base.start, folder="/somewhere"),
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.optimizr.learning_rate=1", r"config\.optimizr does not exist; did you mean optimizer\?"),
        ("--config.optimizer.rate=1", r"optimizer\.rate does not exist; config\.optimizer has learning_rate, schedule"),
        ("--config.learning_rate=1", r"does not exist; did you mean --config\.optimizer\.learning_rate\?"),
        ("--config.optimizer.learning_rate=fast", r"^config\.optimizer\.learning_rate must be float, got 'fast'$"),
        (
            "--config.optimizer.learning_rate=nan",
            r"^config\.optimizer\.learning_rate must be float and finite",
        ),
        ("--config.optimizer.learning_rate=-1", r"^config\.optimizer\.learning_rate=-1\.0 must be"),
        ("--config.optimizer.betas=(0.9,)", r"^config\.optimizer\.betas must be tuple\[float, float\], got \(0\.9,\)$"),
        ("--config.optimizer.betas=('a',1)", r"^config\.optimizer\.betas must be tuple"),
        (
            "--config.optimizer=adam",
            r"config\.optimizer is a group of settings \(AdamW\); set --config\.opt",
        ),
        ("--config.steps.x=1", r"^config\.steps has no parts: it is 10000; set --config\.steps=VALUE$"),
        ("--config.trainable=((1,2),)", r"^config\.trainable must be tuple\[tuple\[str, float\], \.\.\.\]"),
        ("--config.data.folders=(a,b)", r"^config\.data\.folders: \(a,b\) is not a tuple\. Put texts in quotes"),
        ("--config.method.ratios[0]=3", "single elements cannot be set"),
        ("--config.data.in_memory=maybe", r"^config\.data\.in_memory must be bool, got 'maybe'$"),
        ("--config.seed=99999999999999999999", r"^config\.seed must be int of at most 64 bits"),
        ("--config.", r"^config\. does not exist"),
        ("--config.ema=3", r"^config\.ema must be Ema or none, got 3$"),
        ("--config.batch_size=1.5", r"^config\.batch_size must be int, got '1\.5'$"),
        ("--config.batch_size", "Missing value for flag --config.batch_size"),
        ("--config.optimizer.schedule=linear", r"optimizer\.schedule must be 'constant' or 'cosine', got 'linear'"),
        ("--config.remat=some", r"remat must be 'none' or 'attention' or 'full' or 'offload', got 'some'"),
        ("--config.method.ratios=(1,1)", "3 levels need 3 numbers"),
        ("--config.batch_size=0", r"^config\.batch_size=0 must be a whole number from 1"),
        ("--config.accumulation=3", "must be a multiple of accumulation=3"),
        (
            "--learning_rate=1",
            r"Unknown command line flag 'learning_rate'; did you mean --config\.optimizer\.lear",
        ),
        ("surplus", "what is surplus"),
    ],
)
def test_wrong_overrides_are_refused(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, override)


def tiny(tmp_path, *overrides):
    return parse(["helios-train", "--config=stage1_init.py:tiny", f"--workdir={tmp_path}", *overrides]).experiment


def test_groups_that_are_none_are_added_by_their_settings(tmp_path):
    base = tiny(tmp_path)
    assert (base.lora, base.ema, base.validation) == (None, None, None)
    assert tiny(tmp_path, "--config.lora.rank=64", "--config.ema.decay=0.5") == dataclasses.replace(
        base, lora=Lora(rank=64), ema=Ema(decay=0.5)
    )
    assert tiny(tmp_path, "--config.ema=build").ema == Ema()
    assert tiny(tmp_path, "--config.lora=none", "--config.ema=None") == base
    with pytest.raises(ValueError, match=r"^config\.lora\.rank has no default and must be set \(int\)$"):
        tiny(tmp_path, "--config.lora.alpha=64")
    with pytest.raises(ValueError, match=r"config\.lora\.rnk does not exist; did you mean rank\?"):
        tiny(tmp_path, "--config.lora.rnk=64")
    with pytest.raises(ValueError, match=r"config\.validation is none in this experiment, and flags cannot choose"):
        tiny(tmp_path, "--config.validation.every=5")


def test_frozen_settings_can_be_assigned_in_an_experiment_file(tmp_path):
    """Flags reach them like all others."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from helios_jax.experiments.stage1_init import get_config as base\n"
        "from helios_jax.training.ema import Ema\n"
        "def get_config():\n"
        "    config = base('tiny')\n"
        "    config.ema = Ema(decay=0.5)\n"
        "    return config\n"
    )
    run = ["helios-train", f"--config={file}", f"--workdir={tmp_path / 'run'}"]
    assert parse(run).experiment.ema == Ema(decay=0.5)
    assert parse([*run, "--config.ema.decay=0.75"]).experiment.ema == Ema(decay=0.75)


def test_values_may_stand_alone_and_booleans_need_none(tmp_path):
    found = tiny(tmp_path, "--config.steps", "7", "--noconfig.data.in_memory", "--config.data.folders=latents")
    assert (found.steps, found.data.in_memory, found.data.folders) == (7, False, ("latents",))


def test_frozen_settings_may_come_from_an_experiment_file(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from helios_jax.experiments.stage1_init import tiny\ndef get_config():\n    return tiny()\n"
    )
    found = parse(["helios-train", f"--config={tmp_path}/mine.py", f"--workdir={tmp_path}", "--config.steps=3"])
    assert (found.experiment.steps, found.original.steps) == (3, 300)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:\n", r"mine\.py:1: SyntaxError"),
        ("import cats_and_dogs\n", r"mine\.py:1: ModuleNotFoundError: No module named 'cats_and_dogs'"),
        ("x = 1\n", r"mine\.py has no function get_config"),
        ("def get_config(size):\n    return 3\n", "gave no settings; it must return mutable"),
        ("def get_config(size):\n    return {}[size]\n", r"mine\.py:2: KeyError: 'a'"),
        ("def get_config():\n    return 3\n", "takes no size, got 'a'"),
    ],
)
def test_faults_of_an_experiment_file_are_one_line(tmp_path, text, message):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        parse(["helios-train", f"--config={tmp_path}/mine.py:a", f"--workdir={tmp_path}"])
    assert "\n" not in str(caught.value)


def test_missing_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="give --config, an experiment such as"):
        parse(["helios-train", f"--workdir={tmp_path}"])
    with pytest.raises(ValueError, match="give --workdir, the folder of the run"):
        parse(["helios-train", "--config=tiny_vae.py"])
    with pytest.raises(FileNotFoundError, match=r"no experiment file no\.py; installed are .*tiny_vae"):
        parse(["helios-train", "--config=no.py", f"--workdir={tmp_path}"])
    with pytest.raises(ValueError, match="size '13b' must be one of 14b, 1_3b, tiny"):
        parse(["helios-train", "--config=stage1_init.py:13b", f"--workdir={tmp_path}"])


def test_help_is_printed(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(["helios-train", "--help"])
    assert caught.value.code == 0
    assert "--config" in capsys.readouterr().out


def test_cluster_arguments(tmp_path):
    found = arguments(tmp_path, "--coordinator=host:1234", "--num_processes=2", "--process_id=1")
    assert found.distributed
    assert found.cluster == {"coordinator_address": "host:1234", "num_processes": 2, "process_id": 1}
    assert not arguments(tmp_path).distributed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Settings with every kind of field."""

    number: float = 1.0
    choice: Literal["a", "b"] = "a"
    maybe: int | None = None
    pair: tuple[int, int] = (1, 2)
    inner: Ema | None = None


def test_values_of_wrong_types_are_refused():
    for name, value in (("number", "x"), ("choice", "c"), ("maybe", 1.5), ("pair", 3), ("number", True), ("inner", 1)):
        mirror = mutable(Part())
        setattr(mirror, name, value)
        with pytest.raises(ValueError, match=rf"Part\.{name} must be"):
            frozen(mirror)
    mirror = mutable(Part(inner=Ema()))
    mirror.number, mirror.maybe, mirror.inner.start = 2, 3, 4
    assert frozen(mirror) == Part(number=2.0, maybe=3, inner=Ema(start=4))


def test_settings_are_checked_when_they_are_frozen():
    mirror = mutable(Part(inner=Ema()))
    mirror.inner.decay = 2.0
    with pytest.raises(ValueError, match="0 <= decay < 1"):
        frozen(mirror)
