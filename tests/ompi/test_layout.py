"""The private structs of native/layout.h are those of Open MPI's source."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from harness import PROGRAMS
from openmpi_source import open_mpi_source

from kawarimi_ompi.build import OpenMpi, native_sources


@pytest.fixture(scope="session")
def source() -> Path:
    return open_mpi_source()


def check(open_mpi: OpenMpi, source: Path, native: Path) -> subprocess.CompletedProcess[str]:
    words = [str(open_mpi.mpicc), "-std=gnu11", "-fsyntax-only", f"-I{native}", f"-I{source}"]
    program = str(PROGRAMS / "layout_check.c")
    return subprocess.run([*words, program], capture_output=True, text=True, timeout=120)


def test_layout_is_that_of_the_source(open_mpi: OpenMpi, source: Path) -> None:
    done = check(open_mpi, source, native_sources())
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("    uint32_t req_rdma_cnt;\n", "    uint64_t req_rdma_cnt;\n"),
        ("    opal_list_t pckt_pending;\n    opal_list_t send_pending;\n",
         "    opal_list_t pckt_pending;\n    int between;\n    opal_list_t send_pending;\n"),
        ("KW_OB1_RNDV = MCA_BTL_TAG_PML + 2", "KW_OB1_RNDV = MCA_BTL_TAG_PML + 4"),
    ],
    ids=["field", "order", "constant"],
)  # fmt: skip
def test_a_wrong_layout_is_noticed(
    open_mpi: OpenMpi, source: Path, tmp_path: Path, right: str, wrong: str
) -> None:
    text = (native_sources() / "layout.h").read_text()
    assert right in text
    (tmp_path / "layout.h").write_text(text.replace(right, wrong))
    assert check(open_mpi, source, tmp_path).returncode != 0
