"""Open MPI's openib component with the rdmacm connection manager, from Debian's source package.

libopenmpi-dev is built with `--with-devel-headers`, so Debian's own generated `opal_config.h` and
internal headers are installed. The component's sources compile against these directly, in seconds
and with the same layouts as the installed libraries, where a configure of Open MPI takes minutes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kawarimi_testbed.commands import Programs
from kawarimi_testbed.image.debian import Debian

COMPONENT = "mca_btl_openib.so"
_COMPILE_DEADLINE_S = 120.0
_CFLAGS = ["-O2", "-g", "-DNDEBUG", "-fPIC", "-fno-strict-aliasing", "-mcx16", "-w"]
"""Debian's flags for this component; `-w` because upstream's warnings are not ours to mend."""
_LIBRARIES = [
    *("-lopen-pal", "-l:libmca_common_verbs.so.40", "-lrdmacm", "-libverbs"),
    *("-lhwloc", "-levent_core", "-levent_pthreads", "-lpthread"),
]
_NEEDS_OPENSM = {"btl_openib_connect_sl.c"}
"""Subnet-manager queries: compiled in by Open MPI only where OpenSM's headers are, as here not."""


def build(debian: Debian, folder: Path, programs: Programs) -> Path:
    """Compile the component into a folder and return its path."""
    source = debian.source("openmpi", debian.source_version("libopenmpi-dev"))
    openib = source / "opal/mca/btl/openib"
    include_dirs = programs.run(["mpicc", "--showme:incdirs"], deadline_s=10).split()
    lib_dirs = programs.run(["mpicc", "--showme:libdirs"], deadline_s=10).split()
    # Our opal_config.h before Debian's, and Debian's installed headers before the source tree's.
    search: list[str | Path] = [Path(__file__).parent, openib, *reversed(include_dirs), source]
    includes = [f"-I{path}" for path in search]
    objects = folder / "objects"
    objects.mkdir()

    def compile_one(file: Path) -> Path:
        target = objects / f"{file.stem}.o"
        argv: list[str | Path] = ["gcc", *_CFLAGS, *includes, "-c", file, "-o", target]
        programs.run(argv, deadline_s=_COMPILE_DEADLINE_S)
        return target

    sources = sorted([*openib.glob("*.c"), *openib.glob("connect/*.c")])
    with ThreadPoolExecutor() as pool:
        compiled = list(
            pool.map(compile_one, (file for file in sources if file.name not in _NEEDS_OPENSM))
        )
    component = folder / COMPONENT
    library_path = [f"-L{path}" for path in lib_dirs]
    programs.run(
        ["gcc", "-shared", "-Wl,-z,defs", "-o", component, *compiled, *library_path, *_LIBRARIES],
        deadline_s=_COMPILE_DEADLINE_S,
    )
    return component
