"""What a run remembers of its beginning."""

import dataclasses
import json

import pytest
from toy_training import toy_experiment

from helios_jax import cli
from helios_jax.training.experiment import MAY_CHANGE
from helios_jax.training.optimizer import AdamW
from helios_jax.training.overrides import as_json
from helios_jax.training.run_folder import check_frozen, check_settings, write_frozen, write_settings


def settings(**changes):
    return as_json(toy_experiment(**changes))


def test_settings_that_did_not_change_are_not_written_again(tmp_path):
    file = tmp_path / "config.json"
    write_settings(tmp_path, settings())
    before = file.stat()
    write_settings(tmp_path, settings())
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    write_settings(tmp_path, settings(steps=20))
    assert json.loads(file.read_text())["steps"] == 20
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b"3", b'"text"', b"\xff\xfe{}", b'{"frozen": {'])
def test_damaged_files_are_named_with_what_to_do(tmp_path, content):
    for name in ("config.json", "start.json"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"^.*config\.json is damaged \(.*Restore it from a copy; or remove it.*$"):
        check_settings(tmp_path, settings(), may_change=MAY_CHANGE)
    with pytest.raises(ValueError, match=r"^.*start\.json is damaged \(.*remove it.*$"):
        check_frozen(tmp_path, {})


def test_many_changes_are_a_few_lines(tmp_path):
    names = [f"optimizer.a_setting_with_a_rather_long_name_{number}" for number in range(20)]
    (tmp_path / "config.json").write_text(json.dumps(dict.fromkeys(names, "x" * 99)))
    with pytest.raises(ValueError, match="begun with other settings") as caught:
        check_settings(tmp_path, dict.fromkeys(names, "y" * 99), may_change=())
    lines = str(caught.value).splitlines()
    assert len(lines) <= cli.MAX_LINES
    assert max(map(len, lines)) <= cli.MAX_LENGTH
    assert [name in str(caught.value) for name in sorted(names)] == [True] * 8 + [False] * 12
    assert lines[-1].endswith("now; and 12 more")


def cosine(**changes):
    return {"optimizer": AdamW(learning_rate=1e-3, schedule="cosine", **changes)}


def test_a_cosine_keeps_its_length(tmp_path):
    write_settings(tmp_path, settings(steps=10, **cosine()))
    check_settings(tmp_path, settings(steps=10, **cosine()), may_change=MAY_CHANGE)
    refused = r"(?s)--config\.optimizer\.schedule_steps=10 keeps.*optimizer\.schedule_steps: 10 then, 20 now"
    with pytest.raises(ValueError, match=refused):
        check_settings(tmp_path, settings(steps=20, **cosine()), may_change=MAY_CHANGE)
    longer = settings(steps=20, **cosine(schedule_steps=10))
    check_settings(tmp_path, longer, may_change=MAY_CHANGE)
    # The resumed run is remembered with the length that it began with.
    write_settings(tmp_path, longer)
    check_settings(tmp_path, settings(steps=30, **cosine(schedule_steps=10)), may_change=MAY_CHANGE)
    with pytest.raises(ValueError, match=refused.replace("20", "30")):
        check_settings(tmp_path, settings(steps=30, **cosine()), may_change=MAY_CHANGE)


def test_runs_of_before_schedules_had_a_length_are_the_same(tmp_path):
    for optimizer in (cosine(), {}):
        old = settings(**optimizer)
        del old["optimizer"]["schedule_steps"]
        del old["max_skipped"]
        write_settings(tmp_path, old)
        check_settings(tmp_path, settings(**optimizer), may_change=MAY_CHANGE)
    check_settings(tmp_path, settings(steps=99), may_change=MAY_CHANGE)  # constant


def test_the_schedule_has_the_length_that_it_is_given():
    adamw = AdamW(learning_rate=2e-3, schedule="cosine", warmup_steps=10, schedule_steps=110)
    found = [[float(adamw.learning_rates(steps)(step)) for step in (5, 60, 110)] for steps in (20, 110, 10**6)]
    assert found[0] == pytest.approx([1e-3, 1e-3, 0.0], abs=1e-9)
    assert found[0] == found[1] == found[2]
    with pytest.raises(ValueError, match="schedule_steps=110 is for the cosine"):
        dataclasses.replace(adamw, schedule="constant")


def test_changed_frozen_weights_are_refused(tmp_path):
    check_frozen(tmp_path, {"a": "1"})  # a new run
    write_frozen(tmp_path, {"a": "1", "b": "2"})
    check_frozen(tmp_path, {"b": "2", "a": "1"})
    with pytest.raises(ValueError, match="1 of 2 frozen parameters differ, the first is b"):
        check_frozen(tmp_path, {"a": "1", "b": "3"})
    with pytest.raises(ValueError, match="2 of 2 frozen parameters differ, the first is b"):
        check_frozen(tmp_path, {"a": "1", "c": "2"})
