"""Records the UMT5 encoder, the T5 tokenizer and prompt cleaning of the published pipelines.

Run "python tests/parity/record_text_encoder.py" in an environment with torch==2.13.0 diffusers==0.42.1
transformers ftfy. Writes tests/parity/data/text_encoder:

    wide/, narrow/    text_encoder/: random UMT5 checkpoints; io.npz: token ids, masks, last hidden states
    buckets.npz       relative position buckets for a range of offsets and several table sizes
    tokens/           tokenizer/: a small T5 tokenizer; io.json: texts, ids and masks from transformers
    cleaning.json     pairs of raw text and what the diffusers pipeline makes of it
"""

import collections
import json
import math
import pathlib
import shutil

import numpy as np
import tokenizers
import torch
from diffusers.pipelines.helios.pipeline_helios import prompt_clean
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5TokenizerFast, UMT5Config, UMT5EncoderModel
from transformers.models.umt5.modeling_umt5 import UMT5Attention

OUT = pathlib.Path(__file__).parent / "data" / "text_encoder"

SIZES = {
    # Published buckets; sequences longer than max_distance.
    "wide": {"vocab_size": 320, "d_model": 48, "num_layers": 2, "num_heads": 4, "d_kv": 12, "d_ff": 96},
    # N K = 24 differs from d_model; other buckets.
    "narrow": {
        **{"vocab_size": 280, "d_model": 40, "num_layers": 3, "num_heads": 3, "d_kv": 8, "d_ff": 56},
        **{"relative_attention_num_buckets": 16, "relative_attention_max_distance": 20},
    },
}
LENGTHS = {"wide": (150, [150, 71, 1]), "narrow": (30, [12, 30, 1, 29])}

CORPUS = """A red fox runs through deep snow at dawn, its fur glowing in the light.
The camera slowly follows a sailing boat on a calm sea; waves shimmer, clouds drift.
An astronaut walks across a field of sunflowers while the wind moves the leaves.
Close-up of a chef's hands cutting vegetables, steam rising, shallow depth of field, 4K film.
A train passes the valley in the evening. Children are playing on the beach with a small dog!
Un café à Paris, des gens marchent sous la pluie. Eine Straße in Köln bei Nacht, 1920."""

TEXTS = [
    "A red fox runs through the snow.",
    "",
    "the",
    "An astronaut walks on the beach at night, the camera follows; 4K film, shallow depth of field. " * 3,
    "unseen: 狐 zebra #42 {x}",
    "Eine Straße in Köln",
    "text with </s> inside",
    "A red fox runs through deep snow at",
]

RAW = [
    "  plain   text \n with\t\tspaces ",
    "",
    "âœ” No problems, itâ€™s fixed",
    "schÃ¶n &amp;amp; gut &amp;lt;b&amp;gt;",
    "&lt;p&gt;caf&eacute;&lt;/p&gt; &amp;quot;x&amp;quot;",
    "“curly” ‘quotes’ … and — dashes",
    "ﬁne ﬂow ｆｕｌｌ ｗｉｄｔｈ",
    "zero\u200bwidth\u00a0nbsp\u2003em\u3000ideographic\ufeffbom",
    "line\r\nbreaks\rold\u2028mac\u0085next\x0bvertical\x1cfile",
    "\x1b[31mcolour\x1b[0m bell\x07 null\x00",
    "ＬＯＵＤ　ＮＯＩＳＥＳ",
    "lone \ud83d surrogate and 🦊",
    "a &nbsp; b&nbsp;&nbsp;",
    "&amp;amp;amp; thrice",
    "中文提示词,一只狐狸。 日本語",
    "l\u0065\u0301on decomposed",
    "&#x27;hex&#39; &notanentity; &copy",
    "HTML &lt; stays &EACUTE;",
]


def record_encoder(name: str) -> None:
    """Random checkpoint with sharp attention and large biases, so that every term shows in the output."""
    torch.manual_seed(len(name))
    config = UMT5Config(**SIZES[name], feed_forward_proj="gated-gelu", dropout_rate=0.0)
    model = UMT5EncoderModel(config).eval()
    for key, value in model.named_parameters():
        if "norm" in key:
            value.data = 1 + 0.3 * torch.randn(value.shape)
        elif "relative_attention_bias" in key or "shared" in key:
            value.data.normal_()
        else:
            value.data.normal_(std=value.shape[1] ** -0.5)
    shutil.rmtree(OUT / name, ignore_errors=True)
    model.save_pretrained(OUT / name / "text_encoder")

    width, lengths = LENGTHS[name]
    mask = (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()
    token_ids = torch.randint(2, config.vocab_size, mask.shape) * mask
    token_ids[torch.arange(len(lengths)), torch.tensor(lengths) - 1] = 1
    with torch.no_grad():
        hidden = model(token_ids, mask).last_hidden_state
        rounded = model.to(torch.bfloat16)(token_ids, mask).last_hidden_state.float()
    arrays = {"token_ids": token_ids.int(), "mask": mask.bool(), "hidden": hidden, "hidden_bfloat16": rounded}
    np.savez_compressed(OUT / name / "io.npz", **{key: value.numpy() for key, value in arrays.items()})


def record_buckets() -> None:
    offsets = torch.arange(-700, 701)
    rows = {}
    for buckets, distance in [(32, 128), (16, 20), (16, 64), (64, 256)]:
        config = UMT5Config(
            **{"d_model": 8, "num_heads": 1, "d_kv": 8, "is_decoder": False},
            **{"relative_attention_num_buckets": buckets, "relative_attention_max_distance": distance},
        )
        attention = UMT5Attention(config, has_relative_attention_bias=True)
        rows[f"{buckets}_{distance}"] = attention._relative_position_bucket(offsets).numpy().astype(np.int8)
    np.savez_compressed(OUT / "buckets.npz", offsets=offsets.numpy().astype(np.int16), **rows)


def unigram_vocabulary() -> list[tuple[str, float]]:
    """Special tokens, then single characters and the weightiest substrings of the corpus by log frequency."""
    words = ["\u2581" + word for word in CORPUS.split()]
    counts = collections.Counter(
        word[start : start + size] for word in words for size in range(1, 7) for start in range(len(word) - size + 1)
    )
    ranked = sorted(counts, key=lambda piece: (len(piece) > 1, -counts[piece] * len(piece), piece))
    total = math.log(counts.total())
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return special + [(piece, round(math.log(counts[piece]) - total, 4)) for piece in ranked[:250]]


def record_tokenizer() -> None:
    folder = OUT / "tokens" / "tokenizer"
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.mkdir(parents=True)
    pieces = tokenizers.Tokenizer(models.Unigram(unigram_vocabulary(), unk_id=2))
    pieces.normalizer = normalizers.NFKC()
    pieces.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    pieces.decoder = decoders.Metaspace(prepend_scheme="always")
    pieces.add_special_tokens(["<pad>", "</s>", "<unk>"])
    pieces.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    # Published files keep the settings of their last use; a reader must not be led by them.
    pieces.enable_truncation(5)
    pieces.enable_padding(pad_id=0, pad_token="<pad>", length=7)
    pieces.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "T5TokenizerFast", "extra_ids": 0, "model_max_length": 512, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")

    recorded = {}
    for max_tokens in (12, 64):
        results = []
        for loader in (T5TokenizerFast, PreTrainedTokenizerFast):
            batch = loader.from_pretrained(folder)(
                TEXTS, padding="max_length", max_length=max_tokens, truncation=True, add_special_tokens=True
            )
            results.append({"ids": batch["input_ids"], "mask": batch["attention_mask"]})
        if results[0] != results[1]:
            raise RuntimeError(f"the two readers of transformers disagree: {results}")
        recorded[str(max_tokens)] = results[0]
    text = json.dumps({"texts": TEXTS, "results": recorded}, ensure_ascii=True)
    (folder.parent / "io.json").write_text(text + "\n")


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    for name in SIZES:
        record_encoder(name)
    record_buckets()
    record_tokenizer()
    pairs = [[raw, prompt_clean(raw)] for raw in RAW]
    (OUT / "cleaning.json").write_text(json.dumps(pairs, indent=1) + "\n")


if __name__ == "__main__":
    main()
