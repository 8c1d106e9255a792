"""Writes helios-tiny with random weights, which ``record_shipped.py`` records apart from the trained ones.

Run in the environment of this project:

    python tests/parity/make_random_tiny.py random
"""

import pathlib
import shutil
import sys
import tempfile

from helios_jax.checkpoints.random import write_random_checkpoint, write_word_tokenizer
from helios_jax.data.moving_shapes import vocabulary
from helios_jax.experiments import ship_tiny, stage1_init, tiny_vae


def write_product(folder: pathlib.Path) -> None:
    """A distilled checkpoint with the networks of the size helios_tiny, random and in fp32."""
    networks, vae = stage1_init.helios_tiny().start, tiny_vae.textured(tiny_vae.gpu_images(16)).start
    write_random_checkpoint(
        folder, transformer=networks.transformer, text_encoder=networks.text_encoder, vae=vae.vae, seed=1
    )
    shutil.rmtree(folder / "tokenizer")
    write_word_tokenizer(folder, vocabulary(absences=True))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        product = pathlib.Path(temporary) / "product"
        write_product(product)
        ship_tiny.save_in_bfloat16(product, pathlib.Path(sys.argv[1]), "textured")
