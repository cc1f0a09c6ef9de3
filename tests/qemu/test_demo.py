"""`kawarimi demo --json`, as a stranger types it; with an HCA whose link is slow to come up."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from kawarimi_testbed.topology import Topology
from kawarimi_wire.errors import ExitCode
from kawarimi_wire.phases import PHASES
from leftovers import leftovers

DEADLINE_S = 500


@pytest.mark.timeout(600)
async def test_the_demonstration(image, tmp_path: Path, figure) -> None:
    words = ["demo", "--json", "--hca", "e1000e", "--out", str(tmp_path)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kawarimi_bridge.cli.main", *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    finally:
        if process.returncode is None:
            process.terminate()  # it takes its testbed down
            await asyncio.wait_for(process.wait(), 60)
    assert process.returncode == ExitCode.COMPLETED, err.decode()
    demo = json.loads(out)
    assert demo["program"]["data_errors"] == 0
    assert demo["program"]["iterations"] > 0
    ways = [(done["from"], done["to"], done["mode"]) for done in demo["operations"]]
    assert ways == [("hosta", "hostb", "live"), ("hostb", "hostc", "live")]
    for done in demo["operations"]:
        assert done["result"] == "completed"
        assert [row["phase"] for row in done["phases"]] == [spec.phase for spec in PHASES]
        phases = {row["phase"]: row for row in done["phases"]}
        # The program goes on while the ports come up. (A migration may be as short as its stall.)
        if phases["reprobe"]["state"] == "done":
            assert phases["reprobe"]["stall_s"] < phases["reprobe"]["duration_s"] / 2
        assert done["downtime_s"] > 0
        assert 0 < done["stall_s"] < done["duration_s"] / 2
        assert 0 < max(row["stall_s"] for row in done["phases"]) <= done["stall_s"]
        figure(
            f"{done['from']} → {done['to']} in {done['duration_s']:.1f} s: the longest stall "
            f"{done['stall_s'] * 1e3:.0f} ms, QEMU's downtime {done['downtime_s'] * 1e3:.0f} ms, "
            f"a switch at most {done['gap_s'] * 1e3:.0f} ms"
        )
    for folder in demo["reports"]:
        assert (Path(folder) / "report.html").stat().st_size > 0
    assert leftovers(Topology(name="demo")) == []
