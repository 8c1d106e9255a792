"""LoRA files as named on command lines. Imports nothing heavy."""

import math
import os
import pathlib

from helios_jax.user_input import finite_number, number_in, user_path


def parse_lora_argument(text: str) -> tuple[pathlib.Path, float]:
    """Splits ``FILE`` or ``FILE:SCALE``.

    A colon is part of the file's name if such a file exists, or if the text after the colon cannot be a scale because
    it contains a separator or a file extension ("C:/styles/fox.safetensors").

    Args:
        text: What the user gave.

    Returns:
        The path, with ``~`` expanded, and the scale, 1 if none was given. Whether the file
        exists is not checked; see ``find_lora_file``.

    Raises:
        ValueError: There is no file before the colon, or no finite number after it.
    """
    usage = f"lora={text!r}: FILE or FILE:SCALE is needed, such as style.safetensors:0.8"
    if not text.strip():
        raise ValueError(usage)
    file, colon, scale = text.rpartition(":")
    if not colon or user_path(text, "lora").exists():
        return user_path(text, "lora"), 1.0
    try:
        number = number_in(scale)
    except ValueError:
        if "/" in scale or "\\" in scale or scale.endswith(".safetensors"):
            return user_path(text, "lora"), 1.0
        raise ValueError(f"{usage}; {scale!r} is not a number") from None
    if not file.strip():
        raise ValueError(f"{usage}; the file is missing")
    if not math.isfinite(number):
        raise ValueError(f"{usage}; the scale must be a finite number, got {scale}")
    return user_path(file, "lora"), number


def find_lora_file(path: str | os.PathLike[str]) -> pathlib.Path:
    """The LoRA file at a path: the file itself, or the only safetensors file in a folder.

    Raises:
        FileNotFoundError: There is none.
        ValueError: The folder contains several, or the file has an extension of PyTorch's formats.
    """
    path = user_path(path, "lora")
    if path.is_file():
        if path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
            raise ValueError(f"{path} is a file of PyTorch; convert it to safetensors first")
        return path
    files = sorted(file for file in path.glob("*.safetensors") if file.is_file()) if path.is_dir() else []
    if not files:
        found = f"the folder {path} holds none" if path.is_dir() else f"{path} does not exist"
        raise FileNotFoundError(f"no LoRA file: {found}; a safetensors file, or a folder that holds one, is needed")
    if len(files) > 1:
        raise ValueError(f"{path} holds several files, name one of them: {', '.join(file.name for file in files)}")
    return files[0]


def lora_scale(scale: object) -> float:
    """``scale`` as a float, negative and zero included. Raises ValueError unless it is a finite number."""
    return finite_number(scale, "scale")


def lora_name(name: object, file: pathlib.Path) -> str:
    """The name of a LoRA, by default that of its file without the ending.

    Raises:
        ValueError: ``name`` is not a text, for example because a scale was passed in its place.
    """
    if name is None:
        return file.stem
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"name={name!r}: the name of a LoRA must be a text; give its strength as scale=...")
    return name
