"""From what a user names to a folder on disk."""

import re
from pathlib import Path as FilePath

from helios_jax.typing import Path

NEEDED = ("model_index.json", "transformer/*", "vae/*", "text_encoder/*", "tokenizer/*", "scheduler/*")
"""Files of a published repository that inference reads. Repositories also hold initial and intermediate transformers
of up to 57 GB (transformer_init, transformer_ode) that it does not."""


def local_folder(path: Path) -> FilePath:
    """The checkpoint's folder: ``path`` itself, or a download when it is a hub id ("owner/name").

    Raises:
        FileNotFoundError: Neither a folder nor a hub id, or the download failed.
    """
    folder = FilePath(path)
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        raise FileNotFoundError(f"{path} is neither a folder nor a hub id such as 'BestWishYsh/Helios-Distilled'")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return FilePath(snapshot_download(str(path), allow_patterns=list(NEEDED)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise FileNotFoundError(
            f"no folder {path}, and the hub repository of that name could not be fetched: {error}"
        ) from error
