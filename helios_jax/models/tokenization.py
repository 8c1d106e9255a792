"""From prompts to text embeddings: cleaning, tokens, the encoder.

The steps and their order match the Wan and Helios pipelines of diffusers, so the same text gives the same token
ids and embeddings.
"""

import dataclasses
import functools
import html
import importlib.util
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax._warnings import warn_user
from helios_jax.config import TextEncoderConfig
from helios_jax.models.network import Network
from helios_jax.models.text_encoder import Umt5Encoder
from helios_jax.typing import Array, Bool, Float, Int, Path, Sequence
from helios_jax.user_input import user_path

if TYPE_CHECKING:
    import tokenizers


_KEY_COUNTS = (128, 256)
"""Numbers of keys, multiples of the attention kernel's block; the lowest that holds text and a padded token is used."""


@functools.cache
def _text_fixer() -> Callable[[str], str]:
    """ftfy's repair of broken unicode; without the package, the identity and one warning."""
    if importlib.util.find_spec("ftfy") is None:
        warn_user(
            "the package ftfy is not installed: prompts are cleaned without its unicode repair, so the token ids "
            "of text with broken unicode or typographic quotes may differ from those of the published pipeline; "
            "'pip install ftfy' removes the difference",
        )
        return str
    import ftfy

    return ftfy.fix_text


def clean_prompt(text: str) -> str:
    """Repairs unicode, resolves HTML entities (twice: some are doubly escaped), collapses white space."""
    return " ".join(html.unescape(html.unescape(_text_fixer()(text))).split())


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tokenizer:
    """The tokenizer of a checkpoint: T5's pieces, end of sequence appended, padded on the right.

    Attributes:
        pieces: The ``tokenizers.Tokenizer`` that splits text.
        pad_token_id: Token used for padding.
        eos_token_id: Token appended to every text.
    """

    pieces: "tokenizers.Tokenizer" = dataclasses.field(repr=False)  # its repr contains the vocabulary
    pad_token_id: int
    eos_token_id: int

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """Reads ``tokenizer/tokenizer.json`` of a checkpoint.

        Args:
            folder: The checkpoint (the folder that holds ``tokenizer/``) or its tokenizer folder.

        Raises:
            FileNotFoundError: The file is missing.
            ValueError: It is damaged, or it has no ``<pad>`` or ``</s>`` token.
        """
        import tokenizers

        folder = user_path(folder, "folder")
        if (folder / "tokenizer").is_dir():
            folder = folder / "tokenizer"
        path = folder / "tokenizer.json"
        if not path.is_file():
            if (folder / "spiece.model").is_file():
                hint = (
                    "it holds spiece.model, the older format; convert it once with transformers: "
                    f"T5TokenizerFast.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
                )
            else:
                hint = "expected a checkpoint in the published layout, with tokenizer/tokenizer.json"
            raise FileNotFoundError(f"no tokenizer.json in {folder}: {hint}")
        try:
            pieces = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises no more specific class
            raise ValueError(f"{path} is damaged, or not a tokenizer ({error}); fetch it again") from error
        # The file may carry the settings of its last use; ours are applied in __call__.
        pieces.no_truncation()
        pieces.no_padding()
        pad, eos = pieces.token_to_id("<pad>"), pieces.token_to_id("</s>")
        if pad is None or eos is None:
            missing = [name for name, token_id in (("<pad>", pad), ("</s>", eos)) if token_id is None]
            raise ValueError(f"{path} has no token {' or '.join(missing)}: it is not a T5 or UMT5 tokenizer")
        return cls(pieces=pieces, pad_token_id=pad, eos_token_id=eos)

    @property
    def published_class(self) -> str:
        """The class of transformers that reads it. T5's builds its own Unigram model, whatever the file holds."""
        return "T5TokenizerFast" if type(self.pieces.model).__name__ == "Unigram" else "PreTrainedTokenizerFast"

    def save(self, folder: Path) -> None:
        """Writes ``tokenizer/`` of a checkpoint, as this class and transformers read it.

        Args:
            folder: The checkpoint folder; created if needed.

        Raises:
            FileExistsError: It already holds a tokenizer.
        """
        target = user_path(folder, "folder") / "tokenizer"
        if (target / "tokenizer.json").exists():
            raise FileExistsError(f"{target} already holds a tokenizer; choose another folder or remove it first")
        target.mkdir(parents=True, exist_ok=True)
        settings = {
            "tokenizer_class": self.published_class,
            "pad_token": self.pieces.id_to_token(self.pad_token_id),
            "eos_token": self.pieces.id_to_token(self.eos_token_id),
            "unk_token": "<unk>",
        }
        if self.published_class == "T5TokenizerFast":
            # All extra tokens are in tokenizer.json; transformers must not add more.
            settings |= {"extra_ids": 0}
            self.pieces.save(str(target / "tokenizer.json"))
        else:
            _with_end(self.pieces, self.eos_token_id).save(str(target / "tokenizer.json"))
        (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")

    def __call__(self, texts: Sequence[str], max_tokens: int) -> tuple[Int[np.ndarray, "B S"], Bool[np.ndarray, "B S"]]:
        """Token ids and mask (True: token, False: padding), both of width ``max_tokens``.

        A text that is too long loses its last tokens, never the end-of-sequence token, with a warning.

        Raises:
            ValueError: ``max_tokens`` is below 1.
        """
        if max_tokens < 1:
            raise ValueError(f"max_tokens={max_tokens} must be at least 1, the end-of-sequence token")
        ids = np.full((len(texts), max_tokens), self.pad_token_id, np.int32)
        mask = np.zeros((len(texts), max_tokens), bool)
        for row, (text, encoding) in enumerate(
            zip(texts, self.pieces.encode_batch(list(texts), add_special_tokens=False), strict=True)
        ):
            kept = encoding.ids[: max_tokens - 1]
            if lost := len(encoding) - len(kept):
                warn_user(
                    f"a prompt has {len(encoding) + 1} tokens and the limit is {max_tokens}: the last {lost} before "
                    f"the end are dropped, from {text[encoding.offsets[len(kept)][0] :]!r:.120}",
                )
            ids[row, : len(kept) + 1] = [*kept, self.eos_token_id]
            mask[row, : len(kept) + 1] = True
        return ids, mask


def _with_end(pieces: "tokenizers.Tokenizer", eos_token_id: int) -> "tokenizers.Tokenizer":
    """A copy that appends the end of sequence when it is asked for special tokens, as T5's class does by itself."""
    import tokenizers

    eos = str(pieces.id_to_token(eos_token_id))
    copy = tokenizers.Tokenizer.from_str(pieces.to_str())
    copy.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"$A {eos}", pair=f"$A {eos} $B {eos}", special_tokens=[(eos, eos_token_id)]
    )
    return copy


def check_tokenizer(tokenizer: Tokenizer, config: TextEncoderConfig) -> None:
    """Raises ValueError unless every token has an embedding and both use the same padding and end-of-text tokens."""
    tokens = tokenizer.pieces.get_vocab()
    last = max(tokens, key=lambda token: tokens[token])
    if tokens[last] >= config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokens)} tokens, up to number {tokens[last]} ({last!r:.40}), and the text encoder "
            f"{config.vocab_size} embeddings (vocab_size); use both from one checkpoint"
        )
    for name in ("pad_token_id", "eos_token_id"):
        if getattr(tokenizer, name) != getattr(config, name):
            raise ValueError(
                f"{name} is {getattr(tokenizer, name)} in the tokenizer and {getattr(config, name)} in the text "
                "encoder's config.json; use both from one checkpoint"
            )


@jax.jit
def encode_tokens(
    encoder: Network[Umt5Encoder], token_ids: Int[Array, "B S"], mask: Bool[Array, "B S"]
) -> Float[Array, "B S D"]:
    """Last hidden state of the encoder, exactly zero at padded positions.

    The transformer attends to all S positions, so the zeros are part of what it was trained on.
    """
    hidden = encoder.module(token_ids, mask)
    return jnp.where(mask[..., None], hidden, 0)


def possible_keys(max_tokens: int) -> tuple[int, ...]:
    """Possible values of ``needed_keys`` for texts padded to ``max_tokens``; each has its own step programs."""
    return (*(count for count in _KEY_COUNTS if count < max_tokens), max_tokens)


def needed_keys(embeds: Float[Array, "B S D"]) -> int:
    """Number of leading tokens that get keys of their own; the last of them also represents all tokens after it.

    Equal tokens have equal keys and values in every block, so one weighted padding token represents all of them.
    Padding is recognised by its values, since embeddings may come from anywhere; this waits for them to be computed.
    """
    start = int(_padding_start(embeds))
    return next(count for count in possible_keys(embeds.shape[1]) if start < count)


@jax.jit
def _padding_start(embeds: Float[Array, "B S D"]) -> Int[Array, ""]:
    """Index from which all tokens of a text are equal; the largest of the batch."""
    differs = (embeds[:, :-1] != embeds[:, -1:]).any((0, 2))
    return jnp.max(jnp.where(differs, jnp.arange(1, embeds.shape[1]), 0), initial=0)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["encoder"], meta_fields=["tokenizer"])
@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """Turns prompts into embeddings. A pytree of the encoder's parameters, so ``jax.device_put`` can move it.

    Attributes:
        encoder: The ``Umt5Encoder``, split.
        tokenizer: The checkpoint's tokenizer.
    """

    encoder: Network[Umt5Encoder]
    tokenizer: Tokenizer

    @classmethod
    def create(cls, encoder: Umt5Encoder, tokenizer: Tokenizer) -> "TextEncoder":
        """Joins an encoder and a tokenizer.

        Raises:
            ValueError: See ``check_tokenizer``.
        """
        check_tokenizer(tokenizer, encoder.config)
        return cls(encoder=Network.of(encoder), tokenizer=tokenizer)

    def __call__(self, prompts: Sequence[str], max_tokens: int = 512) -> Float[Array, "B S D"]:
        """Cleans, tokenizes and encodes; compiles once per number of prompts and ``max_tokens``.

        Args:
            prompts: One text per batch element; the empty text is allowed.
            max_tokens: S, the width that every text is padded or cut to (512 in the published pipelines).

        Returns:
            Embeddings in the encoder's dtype, exactly zero past each text's end.

        Raises:
            ValueError: ``prompts`` is empty or one bare string.
        """
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"prompts={prompts!r} must be a sequence of at least one text, such as ['a red fox']")
        token_ids, mask = self.tokenizer([clean_prompt(text) for text in prompts], max_tokens)
        return encode_tokens(self.encoder, jnp.asarray(token_ids), jnp.asarray(mask))
