"""Caches on disk: what is set, and what is left alone."""

import pathlib

import jax
import pytest

from helios_jax.compilation import use_compilation_caches


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """Gives each test JAX's own settings, and restores those of the suite afterwards."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_of_a_cpu_are_kept_apart_for_every_kind_of_processor(tmp_path, monkeypatch):
    """They are specific to its instructions, and a home directory may serve several machines."""
    first = use_compilation_caches(tmp_path)
    assert first.parent == tmp_path
    assert jax.config.jax_compilation_cache_dir == str(first)
    jax.config.update("jax_compilation_cache_dir", None)
    assert use_compilation_caches(tmp_path) == first
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(pathlib.Path, "read_text", lambda *_, **__: "model name : Other\nflags : fpu avx512f\n")
    assert use_compilation_caches(tmp_path) != first


def test_gpu_keeps_programs_and_autotuning(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for _ in range(2):
        assert use_compilation_caches(tmp_path / "new") == tmp_path / "new"
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "new")
    assert jax.config.jax_persistent_cache_enable_xla_caches == "xla_gpu_per_fusion_autotune_cache_dir"
    assert (tmp_path / "new").is_dir()


def test_settings_of_the_user_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    assert use_compilation_caches(tmp_path) == tmp_path / "mine"
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")


def test_default_folder_is_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert use_compilation_caches() == tmp_path / "helios_jax"
