"""The settings of a checkpoint, read and checked without its weights.

The class of each part is checked, and so are sizes on which two parts must agree.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

from helios_jax.checkpoints.components import COMPONENTS, read_settings_file
from helios_jax.checkpoints.hub import local_folder
from helios_jax.config import (
    PipelineConfig,
    SamplingDefaults,
    SchedulerConfig,
    TextEncoderConfig,
    TransformerConfig,
    VaeConfig,
)
from helios_jax.config.fields import Json, SettingError, require
from helios_jax.typing import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineSettings:
    """The settings of a checkpoint: all that is known about it before its weights are read.

    Attributes:
        folder: The checkpoint's folder on disk.
        config: From ``model_index.json``.
        scheduler: From ``scheduler/scheduler_config.json``.
        transformer: From ``transformer/config.json``.
        vae: From ``vae/config.json``.
        text_encoder: From ``text_encoder/config.json``; ``None`` when the checkpoint has none.
        defaults: From ``sampling.json``; those of the published models without one.
    """

    folder: FilePath
    config: PipelineConfig
    scheduler: SchedulerConfig
    transformer: TransformerConfig
    vae: VaeConfig
    text_encoder: TextEncoderConfig | None = None
    defaults: SamplingDefaults = dataclasses.field(default_factory=SamplingDefaults)

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the networks that the checkpoint has."""
        return tuple(name for name in COMPONENTS if getattr(self, name) is not None)


def read_settings(
    path: Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: Path | None = None,
) -> PipelineSettings:
    """Reads and checks the settings of a checkpoint without its weights; from the hub, it downloads only JSON files.

    Args:
        path: See ``local_folder``, as for the other arguments.
        revision: See ``local_folder``.
        token: See ``local_folder``.
        cache_dir: See ``local_folder``.

    Raises:
        FileNotFoundError: The folder or a part of it is missing.
        ValueError: Something in it is not supported or does not fit.
    """
    folder = local_folder(path, weights=False, revision=revision, token=token, cache_dir=cache_dir)
    index_file = folder / "model_index.json"
    if not index_file.exists():
        _refuse_training_run(folder)
    config = read_settings_file(index_file, PipelineConfig.from_diffusers)
    classes = read_settings_file(index_file, _part_classes)

    def read_scheduler(json: Json) -> SchedulerConfig:
        listed = classes["scheduler"]
        if not json:  # Every setting has a default, which would hide that the file was emptied.
            raise ValueError(f"{folder}/scheduler/scheduler_config.json holds no settings; fetch it again")
        if listed is not None:
            json = {"_class_name": listed, **json}
            require(json, "_class_name", listed)
        return SchedulerConfig.from_diffusers(json)

    scheduler = read_settings_file(folder / "scheduler" / "scheduler_config.json", read_scheduler)
    networks = {name: part.read_config(folder / name) for name, part in COMPONENTS.items() if name != "text_encoder"}
    if _has_text_encoder(folder, classes):
        networks["text_encoder"] = COMPONENTS["text_encoder"].read_config(folder / "text_encoder")
    _check_tokenizer_settings(folder / "tokenizer" / "tokenizer_config.json")
    settings = PipelineSettings(
        folder=folder,
        config=config,
        scheduler=scheduler,
        defaults=SamplingDefaults.read(folder),
        **networks,
    )
    check_agreement(settings)
    return settings


_CLASSES: Mapping[str, tuple[str, ...]] = {
    "transformer": ("HeliosTransformer3DModel",),
    "vae": ("AutoencoderKLWan",),
    "scheduler": ("HeliosScheduler", "HeliosDMDScheduler"),
    "text_encoder": ("UMT5EncoderModel",),
    "tokenizer": ("T5TokenizerFast", "T5Tokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"),
}
"""The classes that ``model_index.json`` may name for each part."""

_ABSENT = [None, None]
"""The entry of a part that a checkpoint does not have."""


def _part_classes(index: Json) -> dict[str, str | None]:
    """The class of each part in ``model_index.json``; ``""`` if declared absent, ``None`` if not listed."""
    found: dict[str, str | None] = {}
    for part, classes in _CLASSES.items():
        entry = index.get(part)
        optional = part in ("text_encoder", "tokenizer")
        if entry is None and part not in index:
            found[part] = None
        elif entry == _ABSENT and optional:
            found[part] = ""
        elif isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and entry[1] in classes:
            found[part] = entry[1]
        else:
            absent = ", or [null, null] for none" if optional else ""
            raise SettingError(part, entry, f"[library, class] with the class {' or '.join(classes)}{absent}")
    return found


def _has_text_encoder(folder: FilePath, classes: Mapping[str, str | None]) -> bool:
    listed = classes["text_encoder"]
    if listed and not (folder / "text_encoder").is_dir():
        raise FileNotFoundError(
            f"{folder}/text_encoder is missing, and model_index.json lists it. Fetch it; or, to give prompts as "
            'embeddings only, write "text_encoder": [null, null] into model_index.json'
        )
    has = bool(listed) if listed is not None else (folder / "text_encoder").is_dir()
    if has and classes["tokenizer"] == "":
        raise ValueError(f"{folder}/model_index.json: tokenizer=[None, None]; expected one for its text encoder")
    return has


def _check_tokenizer_settings(file: FilePath) -> None:
    """Checks the two token names in ``tokenizer_config.json`` that this library relies on."""

    def check(json: Json) -> None:
        for key, token in (("pad_token", "<pad>"), ("eos_token", "</s>")):
            value = json.get(key, token)
            if (value.get("content") if isinstance(value, dict) else value) != token:
                raise SettingError(key, value, repr(token))

    if file.exists():
        read_settings_file(file, check)


def check_agreement(settings: PipelineSettings) -> None:
    """Raises ValueError if two parts do not fit together, or if a part lacks what sampling needs."""
    transformer, vae, scheduler, config = settings.transformer, settings.vae, settings.scheduler, settings.config
    channels = transformer.in_channels
    equal: list[tuple[str, Any, str, Any]] = [
        ("vae/config.json: z_dim", vae.z_dim, "the transformer's in_channels", channels),
        ("transformer/config.json: out_channels", transformer.velocity_channels, "its in_channels", channels),
        ("vae/config.json: in_channels", vae.in_channels, "the channels of pixels", 3),
        ("vae/config.json: out_channels", vae.out_channels, "the channels of pixels", 3),
        ("transformer/config.json: frames in patch_size", transformer.patch_size[0], "those of a patch", 1),
        (
            "transformer/config.json: has_multi_term_memory_patch",
            transformer.has_multi_term_memory_patch,
            "what sampling needs, patchers for the past",
            True,
        ),
    ]
    if settings.text_encoder is not None:
        width = settings.text_encoder.d_model
        equal.append(("text_encoder/config.json: d_model", width, "the transformer's text_dim", transformer.text_dim))
    if not config.is_pyramid:
        pipeline = "the one level of a HeliosPipeline (model_index.json)"
        equal.append(("scheduler/scheduler_config.json: stages", scheduler.num_levels, pipeline, 1))
    if scheduler.solver == "dmd":
        distilled = "what the DMD solver is for (scheduler_config.json)"
        equal.append(("model_index.json: is_distilled", config.is_distilled, distilled, True))
    for name, value, other, wanted in equal:
        if value != wanted:
            raise ValueError(f"{settings.folder}/{name}={value}; expected {wanted}, {other}")


def _refuse_training_run(folder: FilePath) -> None:
    """Raises ValueError, naming the newest product, if the folder belongs to a training run."""
    products = [path for path in folder.glob("product/*") if path.name.isdigit()]
    if products:
        newest = max(products, key=lambda path: int(path.name))
        raise ValueError(f"{folder} is the folder of a training run; use its newest product, {newest}")
    if (folder / "checkpoints").is_dir() and (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} is the folder of a training run that has no product yet: it writes product/<step> at its end"
        )
