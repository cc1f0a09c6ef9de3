"""What apt would install is asked again whenever that could have changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from kawarimi_testbed.image import versions
from kawarimi_testbed.image.versions import Versions, apt_state, note, recall
from kawarimi_testbed.paths import cache_dir

NOTED = Versions("state", ["a_1.deb", "b_2.deb"])


@pytest.fixture(autouse=True)
def lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine's apt lists, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cache_dir().mkdir(parents=True)
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "Packages").write_text("Package: a")
    monkeypatch.setattr(versions, "_APT", (lists,))
    return lists


def test_a_note_holds_for_its_state_of_apt():
    assert recall("state") is None
    note(NOTED)
    assert recall("state") == NOTED
    assert recall("another") is None
    note(Versions("another", []))
    assert recall("state") is None


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b"\xff"])
def test_a_damaged_note_is_none(damage: bytes):
    note(NOTED)
    (file,) = cache_dir().iterdir()
    file.write_bytes(damage)
    assert recall("state") is None


def test_a_cache_that_is_not_there_is_no_failure():
    cache_dir().rmdir()
    note(NOTED)
    assert recall("state") is None


def test_the_state_changes_with_lists_and_packages(lists: Path):
    states = {apt_state(["a"]), apt_state(["a", "b"])}
    (lists / "Packages").write_text("Package: a b")
    states.add(apt_state(["a"]))
    (lists / "more").touch()
    states.add(apt_state(["a"]))
    assert len(states) == 4
    assert apt_state(["a"]) in states
