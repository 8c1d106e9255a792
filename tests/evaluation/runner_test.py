"""Running, resuming and refusing an evaluation; its records and its report."""

import dataclasses
import html.parser
import json

import numpy as np
import pytest
from PIL import Image

from helios_jax.evaluation.appearance import Appearance
from helios_jax.evaluation.evaluate import evaluate
from helios_jax.evaluation.metrics import VideoInfo
from helios_jax.evaluation.plots import mean_line, plots
from helios_jax.evaluation.preview import COUNT, read_small, shown_frames
from helios_jax.evaluation.records import open_records
from helios_jax.evaluation.runner import Batch, Options, Part, mean_values, measure_part
from helios_jax.evaluation.suites.base import number
from helios_jax.media.decoding import read_frames


def level_of(name: str, frame: int) -> int:
    return 10 * int(name) + 2 * frame


def video(name: str, frames: int = 20) -> VideoInfo:
    return VideoInfo(name=name, num_frames=frames, height=16, width=16, chunk_frames=8, prompt=f"video {name}")


@dataclasses.dataclass(eq=False)
class Brightening:
    """A ``Suite`` of six videos, made two at a time, whose level rises by 2 a frame; counts the chunks it makes."""

    fails_at: int = 1 << 30
    made: list = dataclasses.field(default_factory=list)

    @property
    def parts(self):
        batches = [self.batch(start) for start in (0, 2, 4)]
        return [Part(name="sampled", batches=batches, metrics=(Appearance(),))]

    def batch(self, start):
        names = [str(start), str(start + 1)]

        def chunks():
            for first in (0, 8, 16):  # whole chunks: 24 frames, of which 20 are wanted
                if len(self.made) == self.fails_at:
                    raise KeyboardInterrupt
                self.made.append(start)
                levels = np.array([[level_of(name, first + t) for t in range(8)] for name in names], np.uint8)
                yield np.broadcast_to(levels[..., None, None, None], (2, 8, 16, 16, 3))

        return Batch(videos=tuple(map(video, names)), chunks=chunks, sampled=True)

    def scores(self, records):
        own = records["sampled"]
        rows = [{"name": record["name"], **record["values"]} for record in own]
        return {"sampled": mean_values(own), "videos": rows}

    def tables(self, scores):
        return [("Means <all>", [(name, number(value)) for name, value in scores["sampled"].items()])]


def run(suite, out, settings=None, **options):
    wanted = Options(processes=options.pop("processes", 1), **options)
    return evaluate(suite, out, settings or {"world": 1}, title="a <title>", options=wanted)


def test_an_interrupted_run_resumes_and_gives_the_same_scores(tmp_path):
    whole = run(Brightening(), tmp_path / "whole")
    broken = Brightening(fails_at=5)
    with pytest.raises(KeyboardInterrupt):
        run(broken, tmp_path / "resumed")
    assert sorted(path.name for path in (tmp_path / "resumed" / "records" / "sampled").iterdir()) == [
        "0.json",
        "1.json",
    ]
    assert not (tmp_path / "resumed" / "scores.json").exists()
    second = Brightening()
    assert run(second, tmp_path / "resumed") == whole
    assert second.made == [2, 2, 2, 4, 4, 4]
    written = json.loads((tmp_path / "resumed" / "scores.json").read_text())
    assert written == whole
    assert [row["name"] for row in written["videos"]] == list("012345")
    # 3 chunks of 8, 8 and 4 frames: the last begins 16 frames after the first, and its mean is 2 frames earlier.
    assert whole["sampled"]["drift_brightness"] == pytest.approx(2 * 14 / 255, rel=1e-4)


def test_a_complete_run_does_no_work(tmp_path):
    run(Brightening(), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    again = Brightening()
    run(again, tmp_path)
    assert again.made == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == before


def test_a_lost_record_is_measured_again_alone(tmp_path):
    run(Brightening(), tmp_path)
    lost = tmp_path / "records" / "sampled" / "3.json"
    content = json.loads(lost.read_text())
    lost.unlink()
    again = Brightening()
    told = []
    run(again, tmp_path, on_progress=lambda part, done, total: told.append((part, done, total)))
    assert again.made == [2, 2, 2]
    assert told[0] == ("sampled", 5, 6)
    assert told[-1] == ("sampled", 6, 6)
    timing = ("seconds", "cold")
    now = json.loads(lost.read_text())
    assert all(now[name] == content[name] for name in content if name not in timing)


def test_other_settings_are_refused_and_can_replace(tmp_path):
    run(Brightening(), tmp_path, {"world": 1, "steps": [2, 2, 2], "seed": 0})
    (tmp_path / "notes.txt").write_text("mine")
    message = r"other settings: world was 1, now 2; steps was \[2, 2, 2\], now \[1, 1, 1\]; seed was 0, now not given; "
    with pytest.raises(ValueError, match=f"{message}choose another --out, or pass --overwrite"):
        run(Brightening(), tmp_path, {"world": 2, "steps": [1, 1, 1]})
    again = Brightening()
    evaluate(again, tmp_path, {"world": 2}, title="a", options=Options(processes=1), overwrite=True)
    assert len(again.made) == 9
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_folders_of_others_and_two_runs_at_a_time_are_refused(tmp_path):
    (tmp_path / "scores.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"has scores\.json but no settings\.json; choose another --out"):
        run(Brightening(), tmp_path)
    assert (tmp_path / "scores.json").read_text() == "{}"
    with (
        open_records(tmp_path / "new", {}),
        pytest.raises(BlockingIOError, match="is being written by another process"),
        open_records(tmp_path / "new", {}),
    ):
        pass


def test_a_record_of_another_video_is_refused(tmp_path):
    part = Brightening().parts[0]
    with open_records(tmp_path, {}) as records:
        measure_part(part, records, Options(processes=1))
        videos = (dataclasses.replace(part.batches[0].videos[0], prompt="another text"), part.batches[0].videos[1])
        other = dataclasses.replace(part, batches=[dataclasses.replace(part.batches[0], videos=videos)])
        with pytest.raises(ValueError, match=r"video 0 has prompt='video 0', now it is 'another text'"):
            measure_part(other, records, Options(processes=1))


def test_a_video_that_ends_early_is_an_error(tmp_path):
    batch = Batch(videos=(video("0"),), chunks=lambda: iter([np.zeros((1, 8, 16, 16, 3), np.uint8)]))
    part = Part(name="sampled", batches=[batch], metrics=(Appearance(),))
    with (
        open_records(tmp_path, {}) as records,
        pytest.raises(ValueError, match="video 0 has 8 frames, where 20 were expected"),
    ):
        measure_part(part, records, Options(processes=1))


def test_sampled_videos_are_timed_shown_and_written(tmp_path):
    run(Brightening(), tmp_path, videos_folder=tmp_path / "videos")
    record = json.loads((tmp_path / "records" / "sampled" / "1.json").read_text())
    assert record["cold"]
    assert record["seconds"] > 0
    assert not json.loads((tmp_path / "records" / "sampled" / "2.json").read_text())["cold"]
    frames = np.stack(list(read_frames(tmp_path / "videos" / "1.mp4")))
    levels = [level_of("1", t) for t in range(20)]
    np.testing.assert_allclose(frames.mean((1, 2, 3)), levels, atol=2)
    shown = tmp_path / "shown" / "sampled" / "1.png"
    with Image.open(shown) as strip:
        assert strip.size == (COUNT * 16, 16)
        assert [strip.getpixel((16 * n + 8, 8))[0] for n in range(COUNT)] == [levels[t] for t in shown_frames(20)]
    assert read_small(shown).mean((1, 2, 3)).tolist() == levels


class Tags(html.parser.HTMLParser):
    """Counts tags and collects what they refer to."""

    def __init__(self):
        super().__init__()
        self.counts, self.sources, self.open = {}, [], []

    def handle_starttag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_holds_all_that_it_shows(tmp_path):
    run(Brightening(), tmp_path, {"model": "<b>"})
    text = (tmp_path / "report.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert tags.counts["img"] == 6
    assert tags.counts["svg"] >= 12
    assert "script" not in tags.counts
    assert all(source.startswith("data:image/png;base64,") for source in tags.sources)
    assert "http" not in text
    for shown in ("a &lt;title&gt;", "Means &lt;all&gt;", "model=&lt;b&gt;", "<td>0.1098</td>"):
        assert shown in text


def test_means_end_with_the_shortest_video():
    curves = [{"at": [0, 1, 2], "values": [1.0, None, 3.0]}, {"at": [0, 1], "values": [3.0, 5.0]}]
    x, y = mean_line(curves)
    assert (x.tolist(), y.tolist()) == ([0, 1], [2, 5])


def test_curves_are_drawn_in_their_frame():
    curve = {"axis": "frame", "at": list(range(1000)), "values": [float(t % 7) for t in range(1000)]}
    (figure,) = plots(
        {"files": [{"chunk_frames": 100, "curves": {"a": curve, "none": {**curve, "values": [None] * 1000}}}]}
    )
    points = figure.partition('points="')[2].partition('"')[0].split()
    assert 200 <= len(points) <= 300
    x, y = np.array([point.split(",") for point in points], float).T
    assert (np.diff(x) > 0).all()
    assert 52 <= x[0] < x[-1] <= 372
    assert (y >= 6).all()
    assert (y <= 160).all()
    assert figure.count("<line x1") == 9 + 3  # borders of chunks, and marks of the axis
