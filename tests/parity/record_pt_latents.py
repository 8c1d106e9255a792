"""Records latent files as the original implementation writes them, with PyTorch itself.

Run in an environment with ``torch==2.13.0 numpy pillow`` (CPU builds):

    python tests/parity/record_pt_latents.py

Writes ``tests/parity/data/pt_latents``:

    clips/a_66_16_24.pt           chunked latents, text embeddings, caption, a JPEG image with EXIF data
    clips/more/b_b_33_16_24.pt    the same with a PNG image with a palette, latents a transposed view
    long_81_16_24.pt              a clip encoded in one piece
    values.pt                     tensors of every dtype that is read, views, containers
    <kind>.pt                     what must be refused: float64, a module, a call of os.system
    expected.npz                  the arrays in the files under clips/ and in values.pt, in float32
"""

import io
import os
import pathlib

import numpy as np
import torch
from PIL import Image

OUT = pathlib.Path(__file__).parent / "data" / "pt_latents"


class Command:
    """Runs a command when it is unpickled by a reader that allows it."""

    def __reduce__(self):
        return os.system, ("echo this must never run",)


def picture(form: str) -> Image.Image:
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    image = Image.fromarray(pixels)
    if form == "PNG":
        image = image.convert("P")
    exif = Image.Exif()
    exif[0x010E] = "a test picture"
    buffer = io.BytesIO()
    image.save(buffer, form, exif=exif)
    opened = Image.open(buffer)
    opened.load()
    return opened


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    (OUT / "clips" / "more").mkdir(parents=True, exist_ok=True)
    embeds = torch.zeros(16, 8, dtype=torch.bfloat16)
    embeds[:5] = torch.randn(5, 8, generator=generator).bfloat16()
    a = {
        "vae_latent": torch.randn(2, 4, 9, 2, 3, generator=generator),
        "prompt_embed": embeds,
        "prompt_raw": "A café by the sea.",
        "first_frames_image": picture("JPEG"),
    }
    torch.save(a, OUT / "clips" / "a_66_16_24.pt")
    b = {
        "vae_latent": torch.randn(1, 9, 2, 3, 4, generator=generator).permute(0, 4, 1, 2, 3),
        "prompt_embed": torch.zeros(16, 8, dtype=torch.bfloat16),
        "prompt_raw": "",
        "first_frames_image": picture("PNG"),
    }
    torch.save(b, OUT / "clips" / "more" / "b_b_33_16_24.pt")
    torch.save(a | {"vae_latent": torch.zeros(4, 21, 2, 3), "first_frames_image": None}, OUT / "long_81_16_24.pt")

    numbers = torch.arange(24.0).reshape(4, 6)
    values = {
        "float32": numbers / 7,
        "bfloat16": (numbers / 7).bfloat16(),
        "float16": (numbers / 7).half(),
        "int64": numbers.long(),
        "column": numbers[1:, 2],
        "transposed": numbers.T[::2],
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
    }
    torch.save({"tensors": values, "rest": [1, 2.5, "text", (None, True), {"bytes": b"\x00\xff"}]}, OUT / "values.pt")
    torch.save({"x": torch.zeros(1, dtype=torch.float64)}, OUT / "float64.pt")
    torch.save(torch.nn.Linear(1, 1), OUT / "module.pt")
    torch.save({"x": Command()}, OUT / "command.pt")
    arrays = {f"values/{name}": value.float().numpy() for name, value in values.items()}
    for name, content in (("a", a), ("b", b)):
        arrays |= {f"{name}/{key}": content[key].float().numpy() for key in ("vae_latent", "prompt_embed")}
    np.savez_compressed(OUT / "expected.npz", **arrays)


if __name__ == "__main__":
    main()
