"""Folders and hub ids: the folder on disk, or the headers of the files on the hub."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any

from helios_jax.checkpoints.sources import folder_of
from helios_jax.checkpoints.tensor_files import DTYPES, TensorInfo
from helios_jax.typing import Path
from helios_jax.user_input import user_path

NEEDED = ("model_index.json", "transformer/*", "vae/*", "text_encoder/*", "tokenizer/*", "scheduler/*", "sampling.json")
"""Files of a published repository that inference reads. Repositories also contain initial and intermediate transformers
of up to 57 GB (transformer_init, transformer_ode), which it does not need."""

SETTINGS = (
    *("model_index.json", "scheduler/*.json", "transformer/*.json", "vae/*.json", "text_encoder/*.json"),
    "sampling.json",
)
"""The subset with settings and weight indices: a few hundred kB."""


def local_folder(
    path: Path,
    *,
    weights: bool = True,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: Path | None = None,
) -> FilePath:
    """The checkpoint's folder: ``path`` itself, or a download when it is a hub id ("owner/name").

    Args:
        path: Folder, with ``~`` expanded, the name of a shipped checkpoint, or hub id.
        weights: Download weights and tokenizer too; ``False``: only the JSON files with settings.
        revision: Branch, tag or commit on the hub; its main branch by default.
        token: Access token of the hub; the one that ``hf auth login`` stored by default.
        cache_dir: Where downloads are kept; the hub's own cache folder by default.

    Raises:
        FileNotFoundError: Neither a folder nor a hub id, or the download failed.
        ValueError: Not a path, or a revision of a folder on disk.
    """
    folder = folder_of(path)
    if folder is not None:
        if revision is not None:
            raise ValueError(f"revision={revision!r} belongs to a repository on the hub, and {folder} is a folder")
        return folder
    from huggingface_hub import snapshot_download

    with _as_missing(path, revision):
        return FilePath(
            snapshot_download(
                str(path),
                allow_patterns=list(NEEDED if weights else SETTINGS),
                revision=revision,
                token=token,
                cache_dir=None if cache_dir is None else user_path(cache_dir, "cache_dir"),
            )
        )


def remote_tensors(repo: str, component: str) -> dict[str, TensorInfo]:
    """The tensors in the weight files of a component on the hub; only the files' headers are fetched.

    Raises:
        FileNotFoundError: The repository or the component's weights could not be reached.
        ValueError: A tensor has a dtype that checkpoints do not have.
    """
    import huggingface_hub

    tensors: dict[str, TensorInfo] = {}
    found: dict[str, Any] = {}
    with _as_missing(repo):
        names = huggingface_hub.list_repo_files(repo)
        for name in names:
            if re.fullmatch(rf"{component}/[^/]+\.safetensors", name):
                header = huggingface_hub.parse_safetensors_file_metadata(repo, name)
                found |= {tensor: (name, info) for tensor, info in header.tensors.items()}
    for tensor, (name, info) in found.items():
        if info.dtype not in DTYPES:
            raise ValueError(f"{repo}/{name}: tensor {tensor!r} has dtype {info.dtype}; expected {list(DTYPES)}")
        tensors[tensor] = TensorInfo(file=FilePath(name), shape=tuple(info.shape), dtype=DTYPES[info.dtype])
    return tensors


@contextlib.contextmanager
def _as_missing(repo: Path, revision: str | None = None) -> Iterator[None]:
    """Turns every error of a download into one line that names the repository."""
    try:
        yield
    except Exception as error:  # huggingface_hub and its HTTP client share no base class.
        reason = _reason(repo, revision, error)
        raise FileNotFoundError(
            f"no folder {repo}, and the hub repository of that name could not be fetched: {reason}"
        ) from error


def _reason(repo: Path, revision: str | None, error: Exception) -> str:
    from huggingface_hub import errors

    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and len(causes) < 8:
        causes.append(cause)
    kinds = [type(cause) for cause in causes]
    if errors.GatedRepoError in kinds:
        return f"it is gated; accept its terms at https://huggingface.co/{repo}, then log in with 'hf auth login'"
    if errors.RevisionNotFoundError in kinds:
        return f"it has no revision {revision!r}"
    if errors.RepositoryNotFoundError in kinds:
        return "there is none; check the spelling, or, if it is private, log in with 'hf auth login'"
    if errors.OfflineModeIsEnabled in kinds:
        return "it is not in the cache, and HF_HUB_OFFLINE forbids downloads"
    if errors.LocalEntryNotFoundError in kinds or errors.IncompleteSnapshotError in kinds:
        return f"it is not in the cache, and the hub cannot be reached ({_first_line(causes[-1])}); is there a network?"
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
