"""The picture of several videos with their captions."""

import numpy as np
import pytest

from helios_jax.evaluation.caption_sheet import _wrapped, caption_sheet


def test_lines_are_as_long_as_they_can_be():
    assert _wrapped("aa bb cc dd", 5, len) == ["aa bb", "cc dd"]
    assert _wrapped("aa bbbbbbb c", 5, len) == ["aa", "bbbbbbb", "c"]


def test_frames_are_pasted_unchanged_and_fit_their_captions():
    videos = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 100, 3)).astype(np.uint8)
    sheet = np.asarray(caption_sheet(videos, ["one", "two"], [1, 2, 3]))
    assert sheet.shape == (15 + 2 * (15 + 8 + 8), 300, 3)
    np.testing.assert_array_equal(sheet[-8:, 200:], videos[1, 2])
    np.testing.assert_array_equal(sheet[15 + 15 + 8 :][:8, :100], videos[0, 0])
    with pytest.raises(
        ValueError, match="2 videos of 3 frames need as many captions and numbers, got 1 captions and 3"
    ):
        caption_sheet(videos, ["one"], [1, 2, 3])
