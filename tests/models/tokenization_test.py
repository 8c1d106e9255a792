"""Cleaning, tokens and embeddings against diffusers and transformers (recorded)."""

import functools
import json
import pathlib
import shutil
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helios_jax.checkpoints.random import write_word_tokenizer
from helios_jax.config import TextEncoderConfig
from helios_jax.models import tokenization
from helios_jax.models.text_encoder import Umt5Encoder
from helios_jax.models.tokenization import TextEncoder, Tokenizer, check_tokenizer, clean_prompt, needed_keys

DATA = pathlib.Path(__file__).parents[1] / "parity" / "data" / "text_encoder"
TOKENS = json.loads((DATA / "tokens" / "io.json").read_text())


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(DATA / "tokens")


@functools.cache
def umt5() -> Umt5Encoder:
    return Umt5Encoder(TextEncoderConfig.tiny(), dtype="float32", rngs=nnx.Rngs(0))


@functools.cache
def text_encoder() -> TextEncoder:
    return TextEncoder.create(umt5(), tokenizer())


@pytest.mark.parametrize(("raw", "cleaned"), json.loads((DATA / "cleaning.json").read_text()))
def test_cleaning_equals_diffusers(raw, cleaned):
    assert clean_prompt(raw) == cleaned


def test_without_ftfy_one_warning_and_plain_cleaning(monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    tokenization._text_fixer.cache_clear()
    try:
        with pytest.warns(UserWarning, match="ftfy is not installed.*token ids.*may differ"):
            assert clean_prompt(" itâ€™s  &amp;lt;b ") == "itâ€™s <b"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert clean_prompt("again") == "again"
    finally:
        tokenization._text_fixer.cache_clear()


@pytest.mark.parametrize("max_tokens", [12, 64])
@pytest.mark.filterwarnings("ignore:a prompt has")
def test_tokens_equal_transformers(max_tokens):
    ids, mask = tokenizer()(TOKENS["texts"], max_tokens)
    np.testing.assert_array_equal(ids, TOKENS["results"][str(max_tokens)]["ids"])
    np.testing.assert_array_equal(mask, TOKENS["results"][str(max_tokens)]["mask"])
    assert (ids.dtype, mask.dtype) == (np.int32, np.bool_)


def test_empty_text_is_the_end_of_sequence():
    ids, mask = tokenizer()([""], 4)
    assert ids.tolist() == [[1, 0, 0, 0]]
    assert mask.tolist() == [[True, False, False, False]]


def test_too_long_text_warns_with_what_is_lost():
    words = "A red fox runs through deep snow at dawn"
    (full,), (mask,) = tokenizer()([words], 40)
    count = int(mask.sum())
    with pytest.warns(UserWarning, match=rf"has {count} tokens and the limit is {count - 1}.*last 1 .*'n'"):
        (ids,), _ = tokenizer()([words], count - 1)
    assert ids.tolist() == [*full[: count - 2], 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer()([words], count)


def test_folder_may_be_the_tokenizers_own():
    own = Tokenizer.from_folder(DATA / "tokens" / "tokenizer")
    np.testing.assert_array_equal(own(["a fox"], 9)[0], tokenizer()(["a fox"], 9)[0])


def test_missing_tokenizer_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"no tokenizer.json in {tmp_path}.*published layout"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "spiece.model").touch()
    with pytest.raises(FileNotFoundError, match=r"spiece.model.*T5TokenizerFast.*save_pretrained"):
        Tokenizer.from_folder(tmp_path)


def test_foreign_tokenizer_is_refused(tmp_path):
    shutil.copytree(DATA / "tokens", tmp_path, dirs_exist_ok=True)
    file = tmp_path / "tokenizer" / "tokenizer.json"
    file.write_text(file.read_text().replace("</s>", "[SEP]"))
    with pytest.raises(ValueError, match=r"no token </s>"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("content", ["", "null", "[]", "{}", "text", '{"version": "1.0", "model": {}}'])
def test_damaged_tokenizer_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json is damaged, or not a tokenizer \(.*\); fetch it again"):
        Tokenizer.from_folder(tmp_path)


def test_every_token_needs_an_embedding(tmp_path):
    """An added token may have a number far beyond the count of tokens."""
    content = json.loads((DATA / "tokens" / "tokenizer" / "tokenizer.json").read_text())
    last = max(token["id"] for token in content["added_tokens"])
    config = TextEncoderConfig(vocab_size=280)
    check_tokenizer(Tokenizer.from_folder(DATA / "tokens"), config)
    more = [content["added_tokens"][-1] | {"id": last + i, "content": f"<more{i}>"} for i in range(1, 40)]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | {"added_tokens": content["added_tokens"] + more}))
    with pytest.raises(ValueError, match=r"up to number 2\d\d \('<more39>'\), and the text encoder 280 embeddings"):
        check_tokenizer(Tokenizer.from_folder(tmp_path), config)
    with pytest.raises(ValueError, match="pad_token_id is 0 in the tokenizer and 3 in the text encoder's config"):
        check_tokenizer(Tokenizer.from_folder(DATA / "tokens"), TextEncoderConfig(vocab_size=280, pad_token_id=3))


def test_max_tokens_must_hold_the_end():
    with pytest.raises(ValueError, match="max_tokens=0"):
        tokenizer()(["x"], 0)


def test_embeddings_are_the_hidden_state_then_zeros():
    prompts = ["a  red fox &amp; snow", ""]
    embeds = text_encoder()(prompts, max_tokens=24)
    ids, mask = tokenizer()(["a red fox & snow", ""], 24)
    hidden = umt5()(jnp.asarray(ids), jnp.asarray(mask))
    np.testing.assert_allclose(embeds[mask], hidden[mask], atol=1e-5)
    assert jnp.all(embeds[~mask] == 0)
    assert jnp.abs(hidden[~mask]).min() > 0


def test_second_prompt_does_not_retrace(monkeypatch):
    traces = []
    original = Umt5Encoder.__call__

    def counted(self, token_ids, mask):
        traces.append(token_ids.shape)
        return original(self, token_ids, mask)

    monkeypatch.setattr(Umt5Encoder, "__call__", counted)
    fresh = TextEncoder.create(umt5(), tokenizer())
    first = fresh(["one"], max_tokens=10)
    second = fresh(["the other"], max_tokens=10)
    # The same network with other parameters, as after a move between memories, shares the compiled program.
    moved = jax.tree.map(lambda leaf: leaf + 0, fresh)
    np.testing.assert_array_equal(moved(["one"], max_tokens=10), first)
    assert traces == [(1, 10)]
    assert jnp.abs(first - second).max() > 0.1


@pytest.mark.parametrize(
    ("lengths", "padded", "keys"),
    [
        ((0,), 512, 128),
        ((127,), 512, 128),
        ((128,), 512, 256),  # 128 tokens and one padded
        ((3, 255, 40), 512, 256),
        ((256,), 512, 512),
        ((384,), 512, 512),
        ((512,), 512, 512),
        ((100,), 226, 128),
        ((128,), 226, 226),
        ((5,), 128, 128),
        ((5,), 16, 16),
        ((1,), 1, 1),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_padded_token_at_least_has_a_key(lengths, padded, keys, dtype):
    embeds = np.random.default_rng(0).standard_normal((len(lengths), padded, 4), np.float32)
    for row, length in zip(embeds, lengths, strict=True):
        row[length:] = 0
    assert needed_keys(jnp.asarray(embeds, dtype)) == keys


def test_what_differs_behind_the_text_keeps_its_keys():
    """Equal rows of any value count as padding; rows with one odd number or NaN do not."""
    embeds = np.zeros((2, 512, 4), np.float32)
    embeds[0, :100], embeds[0, 100:] = 1, [1, 2, 3, 4]
    assert needed_keys(jnp.asarray(embeds)) == 128
    embeds[1, 200, 2] = 1e-30
    assert needed_keys(jnp.asarray(embeds)) == 256
    embeds[0, 500, 0] = np.nan
    assert needed_keys(jnp.asarray(embeds)) == 512
    embeds[0, 511, 0] = np.nan
    assert needed_keys(jnp.asarray(embeds)) == 512


def test_a_call_without_prompts_is_refused():
    for prompts in ([], "one bare string"):
        with pytest.raises(ValueError, match="sequence of at least one text"):
            text_encoder()(prompts)


def test_tokenizer_larger_than_the_embedding_is_refused():
    config = TextEncoderConfig(vocab_size=16, d_model=8, num_layers=1, num_heads=1, d_kv=8, d_ff=8)
    with pytest.raises(ValueError, match=r"25\d tokens.*16 embeddings"):
        TextEncoder.create(Umt5Encoder(config, rngs=nnx.Rngs(0)), tokenizer())


def test_a_tokenizer_of_words_is_written_for_the_class_that_can_read_it(tmp_path):
    """T5's class of transformers appends the end of a text by itself; the general one needs it in the file."""
    assert tokenizer().published_class == "T5TokenizerFast"
    write_word_tokenizer(tmp_path / "made", ["a", "circle", "."])
    words = Tokenizer.from_folder(tmp_path / "made")
    words.save(tmp_path / "saved")
    settings = json.loads((tmp_path / "saved" / "tokenizer" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == words.published_class == "PreTrainedTokenizerFast"
    saved = Tokenizer.from_folder(tmp_path / "saved")
    ids, _ = words(["A circle."], 6)
    np.testing.assert_array_equal(saved(["A circle."], 6)[0], ids)
    # What transformers does: it asks the file for special tokens, and pads.
    assert [*saved.pieces.encode("A circle.").ids, 0, 0] == ids[0].tolist()
    assert ids[0, 3:].tolist() == [saved.eos_token_id, saved.pad_token_id, saved.pad_token_id]
