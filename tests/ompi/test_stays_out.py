"""Where the shim does not know what it sees, it says so once and the job runs as without it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Launcher

from kawarimi_ompi import build as building
from kawarimi_ompi.build import OpenMpi, build, native_sources

pytestmark = [pytest.mark.root, pytest.mark.netns]

Program = Callable[[str], Path]


@pytest.mark.parametrize(
    ("right", "wrong", "reason"),
    [
        ('#define KW_LAYOUT_VERSIONS "4.1.4"', '#define KW_LAYOUT_VERSIONS "4.1.9"', "not known"),
        (
            "    unsigned int unexpected_limit;\n",
            "    unsigned int unexpected_limit;\n    long more[3];\n",
            "of another size",
        ),
        ("    size_t rdma_retries_limit;\n", "    char other[16];\n", "parameters are not"),
        ("    int32_t req_state;\n", "    int64_t req_state[2];\n", "not of the known layout"),
        (
            "    opal_free_list_t send_ranges;\n    opal_list_t pckt_pending;\n",
            "    opal_list_t pckt_pending;\n    opal_free_list_t send_ranges;\n",
            "not where they should be",
        ),
    ],
    ids=["version", "tail", "middle", "request", "order"],
)
async def test_unknown_layout(
    launcher: Launcher,
    program: Program,
    open_mpi: OpenMpi,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    right: str,
    wrong: str,
    reason: str,
) -> None:
    native = tmp_path / "native"
    shutil.copytree(native_sources(), native)
    text = (native / "layout.h").read_text()
    assert right in text
    (native / "layout.h").write_text(text.replace(right, wrong))
    monkeypatch.setattr(building, "native_sources", lambda: native)
    launcher.site = launcher.site._replace(component=build(open_mpi))
    await runs_without_shim(launcher, program, reason)


async def test_another_pml(
    launcher: Launcher, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kawarimi_ompi.launcher._check", lambda *_: None)
    await runs_without_shim(launcher, program, "not ob1", OMPI_MCA_pml="cm", OMPI_MCA_mtl="ofi")


async def runs_without_shim(
    launcher: Launcher, program: Program, reason: str, **variables: str
) -> None:
    stop = launcher.directory / "stop"
    async with launcher.start(program("steady"), stop, ranks=2, hello=False, **variables) as job:
        await job.printed("kawarimi stays out of this job")
        stop.touch()
        text = await job.succeed()
    assert "OK" in text
    assert reason in text
    assert text.count("stays out of this job") == 1
    assert not launcher.server.ranks
