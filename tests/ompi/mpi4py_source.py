"""mpi4py's own test suite, of the version that is installed beside this one.

Only its source distribution has it. Fetched with pip, from wherever pip fetches, and cached.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from kawarimi_ompi.build import cache_directory

DEADLINE_S = 180


def mpi4py_tests() -> Path:
    """The directory of mpi4py's tests.

    :raise subprocess.CalledProcessError: pip cannot fetch it; nothing is left behind.
    """
    name = f"mpi4py-{metadata.version('mpi4py')}"
    directory = cache_directory() / f"{name}-source"
    if not directory.exists():
        partial = directory.with_name(f"{directory.name}.{os.getpid()}")
        partial.mkdir(parents=True)
        try:
            subprocess.run(
                [
                    *(sys.executable, "-m", "pip", "download", "--quiet", "--dest", partial),
                    *("--no-deps", "--no-binary", "mpi4py", "--no-build-isolation"),
                    name.replace("-", "=="),
                ],
                check=True,
                capture_output=True,
                timeout=DEADLINE_S,
            )
            shutil.unpack_archive(partial / f"{name}.tar.gz", partial)
            (partial / name).rename(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return directory / "test"
