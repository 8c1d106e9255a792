"""What a checkpoint was trained on, where that differs from the published models: ``sampling.json`` in its folder.

The published checkpoints have no such file: they were trained at 384 x 640 with 512 text tokens. A small model makes
nothing sensible at that size, so it says which one it knows.
"""

import dataclasses
import json
import pathlib
from typing import Annotated, Any, Literal

from helios_jax.config.fields import Json, Range, check_fields, publish, read_fields

FILE = "sampling.json"

_KEYS = {name: name for name in ("height", "width", "max_text_tokens", "style")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingDefaults:
    """Settings of sampling that apply unless the caller gives others.

    Attributes:
        height: Pixel rows.
        width: Pixel columns.
        max_text_tokens: Length that texts are padded or cut to.
        style: Style of the moving shapes that the model was trained on; ``None``: it was trained on something else.
    """

    height: Annotated[int, Range(1, 4096)] = 384
    width: Annotated[int, Range(1, 4096)] = 640
    max_text_tokens: Annotated[int, Range(1, 4096)] = 512
    style: Literal["plain", "textured"] | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def read(cls, folder: pathlib.Path) -> "SamplingDefaults":
        """Those of a checkpoint; the published ones if it has no ``sampling.json``.

        Raises:
            ValueError: The file is damaged, or a value does not fit.
        """
        file = folder / FILE
        if not file.is_file():
            return cls()
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError("expected a JSON object")
            return cls.from_json(content)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    @classmethod
    def from_json(cls, content: Json) -> "SamplingDefaults":
        """Reads the content of the file.

        Raises:
            SettingError: A value does not fit.
        """
        return read_fields(cls, content, _KEYS)

    def to_json(self) -> dict[str, Any]:
        """Inverse of ``from_json``."""
        return publish(self, _KEYS)
