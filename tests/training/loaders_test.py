"""Loaders against closed forms: windows, the order of samples, and the state of iterators."""

import collections
import itertools
import json

import ml_dtypes
import numpy as np
import pytest

from helios_jax.checkpoints.random import write_character_tokenizer
from helios_jax.data.helios_latents.record import LatentRecord, RecordError
from helios_jax.models.tokenization import Tokenizer
from helios_jax.training.loaders import latent_loader, video_loader
from helios_jax.training.text_formats import PaddedEmbeds, Tokens, WithCaptions, decode_captions
from helios_jax.training.windows import cut_window


def record(number: int, *, chunks: int = 3, size=(1, 1), tokens: int = 2, caption: str = "A fox.") -> LatentRecord:
    """A clip whose latent frame t is 1000 number + t + 1 everywhere."""
    values = 1000 * number + 1 + np.arange(9 * chunks, dtype=np.float32)
    latents = np.broadcast_to(values.reshape(chunks, 9, 1, 1, 1), (chunks, 9, *size, 2)).copy()
    return LatentRecord(
        uid=f"clip{number}",
        caption=caption,
        fps=24.0,
        height=8 * size[0],
        width=8 * size[1],
        latents=latents,
        anchor=latents[0, 0],
        embeds=np.full((tokens, 3), number + 1, ml_dtypes.bfloat16),
    )


def seen(batch) -> list[tuple[int, int]]:
    """(clip, chunk) of every sample, read from the target's first frame."""
    first = np.asarray(batch.target[:, 0, 0, 0, 0], int) - 1
    return [(int(value) // 1000, int(value) % 1000 // 9) for value in first]


def take(loader, count: int) -> list:
    return list(itertools.islice(loader, count))


def assert_equal_batches(a, b) -> None:
    for name in ("target", "history", "anchor"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_array_equal(a.text.embeds, b.text.embeds)


# Numbers of the history's frames, counted from 1, and zeros before the start of the clip.
HISTORIES = {
    0: [0] * 19,
    1: [0] * 10 + list(range(1, 10)),
    2: [0] * 1 + list(range(1, 19)),
    3: list(range(9, 28)),
    4: list(range(18, 37)),
}


@pytest.mark.parametrize("chunk", range(5))
def test_window_of_each_chunk(chunk):
    clip = record(0, chunks=5, size=(2, 3))
    target, history, anchor = cut_window(clip.latents, clip.anchor, chunk, 19)
    assert (target.shape, history.shape, anchor.shape) == ((9, 2, 3, 2), (19, 2, 3, 2), (1, 2, 3, 2))
    for frames, values in (
        (target, range(9 * chunk + 1, 9 * chunk + 10)),
        (history, HISTORIES[chunk]),
        (anchor, [1 if chunk else 0]),
    ):
        np.testing.assert_array_equal(frames, np.broadcast_to(np.reshape(values, (-1, 1, 1, 1)), frames.shape))


def test_batches_hold_the_windows_of_their_clips():
    clips = [record(number, chunks=4, size=(1, 2)) for number in range(6)]
    batch = next(latent_loader([clips], batch=6, seed=0, text=PaddedEmbeds(tokens=5)))
    assert isinstance(batch.target, np.ndarray)
    assert batch.target.dtype == np.float32
    assert sorted(clip for clip, _ in seen(batch)) == list(range(6))
    for row, (clip, chunk) in enumerate(seen(batch)):
        expected = cut_window(clips[clip].latents, clips[clip].anchor, chunk, 19)
        for name, array in zip(("target", "history", "anchor"), expected, strict=True):
            np.testing.assert_array_equal(getattr(batch, name)[row], array)
        np.testing.assert_array_equal(batch.text.embeds[row, :2], clips[clip].embeds)
        assert not batch.text.embeds[row, 2:].any()


@pytest.mark.parametrize("count", [2, 4])
def test_global_batches_do_not_depend_on_the_number_of_processes(count):
    clips = [record(number, size=(1, 1 + number % 2)) for number in range(9)]
    options = {"batch": 4, "seed": 3, "text": PaddedEmbeds(tokens=4)}
    whole = take(latent_loader([clips], process_index=0, process_count=1, **options), 8)
    shares = [take(latent_loader([clips], process_index=i, process_count=count, **options), 8) for i in range(count)]
    for j, batch in enumerate(whole):
        parts = [share[j] for share in shares]
        assert all(len(part.target) == 4 // count for part in parts)
        np.testing.assert_array_equal(np.concatenate([part.target for part in parts]), batch.target)
        np.testing.assert_array_equal(np.concatenate([part.history for part in parts]), batch.history)
        np.testing.assert_array_equal(np.concatenate([part.text.embeds for part in parts]), batch.text.embeds)


@pytest.mark.parametrize("position", [1, 5, 12])
def test_restored_iterators_go_on_with_the_same_batches(position):
    clips = [record(number, size=(1, 1 + number % 2)) for number in range(7)]
    options = {"batch": 2, "seed": 1}
    loader = latent_loader([clips], **options)
    take(loader, position)
    state = json.loads(json.dumps(loader.get_state()))
    expected = take(loader, 6)
    fresh = latent_loader([clips], **options)
    fresh.set_state(state)
    for a, b in zip(take(fresh, 6), expected, strict=True):
        assert_equal_batches(a, b)
    # A state fits any number of processes.
    halves = [latent_loader([clips], process_index=i, process_count=2, **options) for i in range(2)]
    for half in halves:
        half.set_state(state)
    for parts in zip(*(take(half, 6) for half in halves), strict=True):
        np.testing.assert_array_equal(np.concatenate([part.target for part in parts]), expected.pop(0).target)


def test_orbax_saves_iterators(tmp_path):
    import grain
    import orbax.checkpoint as ocp

    clips = [record(number) for number in range(5)]
    loader = latent_loader([clips], batch=2, seed=1)
    take(loader, 4)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(4, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(loader)))
        manager.wait_until_finished()
        expected = take(loader, 3)
        fresh = latent_loader([clips], batch=2, seed=1)
        manager.restore(4, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(fresh)))
    for a, b in zip(take(fresh, 3), expected, strict=True):
        assert_equal_batches(a, b)


def test_every_epoch_shows_every_clip_once_in_another_order():
    clips = [record(number) for number in range(12)]
    batches = take(latent_loader([clips], batch=4, seed=0), 9)
    order = [clip for batch in batches for clip, _ in seen(batch)]
    epochs = [order[i : i + 12] for i in range(0, 36, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert order != [clip for batch in take(latent_loader([clips], batch=4, seed=1), 9) for clip, _ in seen(batch)]


def test_chunks_are_uniform_and_drawn_anew_every_epoch():
    clips, epochs = 400, 10
    loader = latent_loader([[record(number, chunks=4) for number in range(clips)]], batch=100, seed=5)
    chunks = collections.defaultdict(list)
    for batch in take(loader, clips * epochs // 100):
        for clip, chunk in seen(batch):
            chunks[clip].append(chunk)
    assert all(len(of_clip) == epochs for of_clip in chunks.values())
    draws = np.array(list(chunks.values()))
    n = draws.size
    counts = np.bincount(draws.ravel(), minlength=4)
    assert np.abs(counts - n / 4).max() < 4 * np.sqrt(n * 3 / 16)
    # Successive epochs are independent: a clip repeats its chunk with probability 1/4.
    repeats = np.count_nonzero(draws[:, 1:] == draws[:, :-1])
    n = draws[:, 1:].size
    assert abs(repeats - n / 4) < 4 * np.sqrt(n * 3 / 16)


def test_batches_have_one_size_each_in_proportion():
    clips = [record(number, size=(1, 2) if number < 30 else (2, 1)) for number in range(40)]
    shapes = collections.Counter(batch.target.shape for batch in take(latent_loader([clips], batch=2, seed=0), 40))
    assert shapes == {(2, 9, 1, 2, 2): 30, (2, 9, 2, 1, 2): 10}


def test_ratios_mix_sources():
    sources = [[record(number) for number in range(30)], [record(number) for number in range(100, 110)]]
    order = [clip for batch in take(latent_loader(sources, batch=4, seed=0), 30) for clip, _ in seen(batch)]
    assert sum(clip >= 100 for clip in order) == 30  # 10 of 40
    loader = latent_loader(sources, batch=4, seed=0, ratios=[1, 6])
    counts = collections.Counter(clip for batch in take(loader, 30) for clip, _ in seen(batch))
    assert sum(count for clip, count in counts.items() if clip >= 100) == 80  # 60 of 90
    assert {counts[clip] for clip in range(100, 110)} == {8}


def test_captions_become_tokens(tmp_path):
    write_character_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)
    clips = [record(0, caption="ab", tokens=0), record(1, caption="  abc&amp;d ", tokens=0)]
    batch = next(latent_loader([clips], batch=2, seed=0, text=Tokens(tokenizer=tokenizer, tokens=8)))
    assert batch.text.embeds is None
    ids, mask = tokenizer(["ab", "abc&d"], 8)
    order = [clip for clip, _ in seen(batch)]
    np.testing.assert_array_equal(batch.text.tokens, ids[order])
    np.testing.assert_array_equal(batch.text.lengths, mask.sum(1)[order])
    np.testing.assert_array_equal(mask.sum(1), [4, 7])  # "_ab</s>" and "_abc&d</s>"


def test_captions_are_in_the_batch_for_a_reward():
    texts = ["A fox.", "Ein Bär läuft.", ""]
    clips = [record(number, caption=text) for number, text in enumerate(texts)]
    text = WithCaptions(text=PaddedEmbeds(tokens=4), size=16)
    batch = next(latent_loader([clips], batch=3, seed=0, text=text))
    assert batch.text.captions.shape == (3, 16)
    assert decode_captions(batch.text.captions) == [texts[clip] for clip, _ in seen(batch)]
    assert batch.text.embeds.shape == (3, 4, 3)
    with pytest.raises(RecordError, match=r"its caption has 16 bytes, and data\.captions=15"):
        next(latent_loader([clips], batch=3, seed=0, text=WithCaptions(text=PaddedEmbeds(tokens=4), size=15)))


def test_some_captions_give_way_to_the_empty_text(tmp_path):
    """The share is as requested in all windows, the choice differs between epochs, and the windows do not change."""
    write_character_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)
    clips = [record(number, caption="ab") for number in range(50)]
    plain, dropping = (
        take(latent_loader([clips], batch=50, seed=0, text=Tokens(tokenizer=tokenizer, tokens=8, drop=drop)), 40)
        for drop in (0.0, 0.3)
    )
    assert [seen(batch) for batch in plain] == [seen(batch) for batch in dropping]
    assert all((batch.text.lengths == 4).all() for batch in plain)
    dropped = collections.defaultdict(list)
    for batch in dropping:
        for (clip, chunk), length, tokens in zip(seen(batch), batch.text.lengths, batch.text.tokens, strict=True):
            assert length in (1, 4)
            assert length == 4 or tokens.tolist() == [tokenizer.eos_token_id, *[tokenizer.pad_token_id] * 7]
            dropped["all"].append(length == 1)
            dropped[chunk].append(length == 1)
            dropped[f"clip {clip}"].append(length == 1)
    for case in ("all", 0, 1, 2):
        assert np.mean(dropped[case]) == pytest.approx(0.3, abs=4 * (0.21 / len(dropped[case])) ** 0.5)
    assert {0 < np.mean(dropped[f"clip {clip}"]) < 1 for clip in range(50)} == {True}


@pytest.mark.parametrize(
    ("bad", "text", "message"),
    [
        (record(1, tokens=9), PaddedEmbeds(tokens=4), r"record 1 of 2 in memory \('clip1'\).*9 tokens.*pads to 4"),
        (record(1, tokens=0), PaddedEmbeds(tokens=4), r"clip1.*no text embeddings"),
        (record(1, caption=" "), Tokens(tokenizer=None), r"clip1.*no caption"),
    ],
)
def test_records_that_cannot_be_used_are_named(bad, text, message):
    loader = latent_loader([[bad, bad]], batch=1, seed=0, text=text)
    with pytest.raises(RecordError, match=message.replace("record 1", r"record \d")):
        next(loader)


def misshapen(number: int) -> LatentRecord:
    good = record(number)
    latents = good.latents[:, :8]
    return LatentRecord(**{**vars(good), "latents": latents})


def test_wrong_shapes_are_named():
    with pytest.raises(RecordError, match=r"clip0.*\[3, 8, 1, 1, 2\].*\[S, 9, 1, 1, C\]"):
        next(latent_loader([[misshapen(0)]], batch=1, seed=0))


def test_bad_records_can_be_skipped_and_are_reported_once(tmp_path):
    clips = [misshapen(number) if number in (2, 3) else record(number) for number in range(6)]
    report = tmp_path / "skipped.jsonl"
    options = {"batch": 3, "seed": 0, "on_error": "skip"}
    batches = take(latent_loader([clips], report=report, threads=1, **options), 4)
    counts = collections.Counter(clip for batch in batches for clip, _ in seen(batch))
    assert counts == {0: 2, 1: 2, 4: 6, 5: 2}  # the next good one takes the place of two
    lines = [json.loads(line)["error"] for line in report.read_text().splitlines()]
    assert sorted("clip2" in line for line in lines) == [False, True]
    assert sorted("clip3" in line for line in lines) == [False, True]
    for a, b in zip(take(latent_loader([clips], **options), 4), batches, strict=True):
        assert_equal_batches(a, b)


def test_no_usable_record_is_an_error():
    with pytest.raises(RecordError, match="none of the 2 records can be used"):
        next(latent_loader([[misshapen(0), misshapen(1)]], batch=1, seed=0, on_error="skip"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 3, "process_index": 0, "process_count": 2}, "batch of 3 cannot be divided evenly among 2"),
        ({"batch": 2, "process_index": 2, "process_count": 2}, "process 2 of 2"),
        ({"batch": 2, "ratios": [1.0, 2.0]}, "one ratio above 0 for each of 1 sources"),
        ({"batch": 2, "ratios": [0.0]}, "one ratio above 0"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        latent_loader([[record(0)]], seed=0, **options)


def pixels(number: int, frames: int, size=(2, 4)) -> np.ndarray:
    """A clip whose frame t is 20 number + t."""
    values = (20 * number + np.arange(frames)).astype(np.uint8)
    return np.broadcast_to(values[:, None, None, None], (frames, *size, 3)).copy()


def test_videos_are_cut_at_random_places():
    clips = [pixels(number, 5 + number) for number in range(8)]
    loader = video_loader([clips], batch=8, frames=5, seed=0)
    starts = collections.defaultdict(collections.Counter)
    for batch in take(loader, 100):
        assert batch.frames.shape == (8, 5, 2, 4, 3)
        assert batch.frames.dtype == np.uint8
        values = batch.frames[:, :, 0, 0, 0].astype(int)
        np.testing.assert_array_equal(np.diff(values, axis=1), 1)
        for value in values[:, 0]:
            starts[value // 20][value % 20] += 1
    assert {clip: set(counts) for clip, counts in starts.items()} == {n: set(range(n + 1)) for n in range(8)}
    # Eight places for the last clip, each 100/8 +- 3.3 times.
    assert max(abs(count - 12.5) for count in starts[7].values()) < 4 * np.sqrt(100 * 7 / 64)


def test_video_loader_splits_batches_and_restores():
    clips = [pixels(number, 9) for number in range(5)]
    options = {"batch": 4, "frames": 5, "seed": 2}
    loader = video_loader([clips], **options)
    take(loader, 3)
    halves = [video_loader([clips], process_index=i, process_count=2, **options) for i in range(2)]
    for half in halves:
        half.set_state(loader.get_state())
    whole = next(loader).frames
    np.testing.assert_array_equal(np.concatenate([next(half).frames for half in halves]), whole)


def test_bad_videos_are_named_or_skipped():
    clips = [pixels(0, 9), pixels(1, 4)]
    with pytest.raises(RecordError, match=r"record 1 of 2.*uint8 \[4, 2, 4, 3\].*at least 5 frames"):
        take(video_loader([clips], batch=2, frames=5, seed=0), 1)
    batch = next(video_loader([clips], batch=2, frames=5, seed=0, on_error="skip"))
    assert batch.frames.max() < 20
