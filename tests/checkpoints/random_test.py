"""Tokenizers for models that are trained from scratch."""

import numpy as np

from helios_jax.checkpoints.random import write_word_tokenizer
from helios_jax.models.tokenization import Tokenizer


def test_words_and_punctuation_become_pieces(tmp_path):
    pieces = write_word_tokenizer(tmp_path, ["fox", "a", ",", "red", "fox"])
    tokenizer = Tokenizer.from_folder(tmp_path)
    names = ["<pad>", "</s>", "<unk>", ",", "a", "fox", "red"]
    assert pieces == tokenizer.pieces.get_vocab_size() == len(names)
    ids, mask = tokenizer(["A red,red  fox", "", "a blue foxy"], 8)
    wanted = [["a", "red", ",", "red", "fox", "</s>"], ["</s>"], ["a", "<unk>", "<unk>", "</s>"]]
    assert [[names[i] for i in row[kept]] for row, kept in zip(ids, mask, strict=True)] == wanted
    tokenizer.save(tmp_path / "again")
    np.testing.assert_array_equal(
        Tokenizer.from_folder(tmp_path / "again")(["a red fox"], 8)[0], tokenizer(["a red fox"], 8)[0]
    )
