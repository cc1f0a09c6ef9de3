"""Where the shim of the kind `ucp` cannot do its work, it says so once; the job runs as without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Launcher, other_ucx

pytestmark = [pytest.mark.root, pytest.mark.netns]

Program = Callable[[str], Path]


@pytest.mark.parametrize(
    ("what", "reason"),
    [("KW_OLDER", "its UCX is older than 1.13"), ("KW_GPU", "in the memory of a GPU")],
    ids=["older", "gpu"],
)
async def test_other_ucx(
    launcher: Launcher, program: Program, tmp_path: Path, what: str, reason: str
) -> None:
    library = other_ucx(tmp_path, what)
    stop = launcher.directory / "stop"
    async with launcher.start(
        program("steady"), stop, ranks=2, kind="ucp", hello=False, LD_PRELOAD=str(library)
    ) as job:
        await job.printed(reason)
        stop.touch()
        text = await job.succeed()
    assert "OK" in text
    assert text.count("stays out of this job") == 1
    assert not launcher.server.ranks


async def test_job_that_nobody_gave_sides_runs_as_without(
    launcher: Launcher, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "kawarimi_ompi.ucp._exported",
        lambda choice, variables, library: {"LD_PRELOAD": str(library)},
    )
    stop = launcher.directory / "stop"
    async with launcher.start(program("steady"), stop, ranks=2, kind="ucp", hello=False) as job:
        await job.printed("kawarimi stays out of this job")
        stop.touch()
        text = await job.succeed()
    assert "OK" in text
    assert text.count("stays out of this job") == 1
    assert not launcher.server.ranks
