"""The cache of built folders: complete or absent."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from kawarimi_testbed.image.cache import Cache
from kawarimi_wire.errors import OutcomeUnknown, PreflightRefused, Slug

INPUTS = {"a": "1"}


def write_file(folder: Path) -> None:
    (folder / "file").write_text("content")


def test_an_entry_is_built_once(tmp_path):
    cache = Cache(tmp_path)
    assert cache.find("kind", INPUTS) is None
    folder = cache.build("kind", INPUTS, write_file)
    assert (folder / "file").read_text() == "content"
    assert cache.find("kind", INPUTS) == folder
    assert cache.build("kind", INPUTS, lambda _: pytest.fail("built again")) == folder


def test_other_inputs_are_another_entry(tmp_path):
    cache = Cache(tmp_path)
    first = cache.build("kind", INPUTS, write_file)
    assert cache.build("kind", {"a": "2"}, write_file) != first
    assert first.exists()


def test_a_failed_build_leaves_nothing(tmp_path):
    def fail(folder: Path) -> None:
        write_file(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Cache(tmp_path).build("kind", INPUTS, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_failed_rebuild_keeps_what_was_there(tmp_path):
    cache = Cache(tmp_path)
    folder = cache.build("kind", INPUTS, write_file)

    def fail(folder: Path) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        cache.build("kind", INPUTS, fail, rebuild=True)
    assert cache.find("kind", INPUTS) == folder


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "file").write_text("Content"),
        lambda folder: (folder / "file").write_text("longer content"),
        lambda folder: (folder / "file").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{"),
        lambda folder: (folder / "manifest.json").unlink(),
    ],
)
def test_damage_is_found_and_a_rebuild_mends_it(tmp_path, damage):
    cache = Cache(tmp_path)
    folder = cache.build("kind", INPUTS, write_file)
    damage(folder)
    with pytest.raises(PreflightRefused) as caught:
        cache.find("kind", INPUTS)
    assert caught.value.slug is Slug.CACHE_CORRUPT
    with pytest.raises(PreflightRefused):
        cache.build("kind", INPUTS, write_file)
    assert cache.build("kind", INPUTS, write_file, rebuild=True) == folder
    assert cache.find("kind", INPUTS) == folder


def test_what_a_killed_builder_left_is_swept(tmp_path):
    left = tmp_path / ".building-left"
    left.mkdir()
    Cache(tmp_path).build("kind", INPUTS, write_file)
    assert not left.exists()


def test_another_builder_is_waited_for_no_longer_than_the_deadline(tmp_path):
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OutcomeUnknown) as caught:
            Cache(tmp_path).build("kind", INPUTS, write_file, lock_deadline_s=0.1)
    assert caught.value.slug is Slug.CACHE_BUSY
