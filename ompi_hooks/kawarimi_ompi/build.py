"""Finding an Open MPI, and building the native shims.

The component of the kind `btl` has to be compiled against the very Open MPI that will load it. The
library of the kind `ucp` knows nothing of Open MPI, and is one for every UCX from 1.13 on. Each
goes into a directory of its own under the cache, named by what it was built from, so that several
live side by side and nothing is ever built twice.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import msgspec

from kawarimi_wire.errors import ExecutionFailed, PreflightRefused, Slug, UsageError

COMPONENT = "mca_hook_kawarimi.so"
HELP_FILE = "help-hook-kawarimi.txt"
UCP_LIBRARY = "libkawarimi_ucp.so"
UCP_COMMON = ("executor", "hold", "link", "poke", "program", "protocol", "queues", "stall", "steps")
"""What the kind `ucp` shares with the kind `btl`; the rest of it lies in native/ucp."""

KNOWN_VERSIONS = ("4.1.4",)
"""Open MPI releases whose private layout native/layout.h declares."""

COMPILER_FLAGS = (
    "-std=gnu11",
    "-O2",
    "-g",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-D_GNU_SOURCE",
)
LINKER_FLAGS = (
    "-shared",
    # Loaded for as long as the process lives: threads and callbacks may outlive Open MPI's dlclose.
    "-Wl,-z,nodelete",
    # In an Open MPI that lacks a symbol the component is to fail at loading, not at running.
    "-Wl,-z,now",
    "-Wl,-z,defs",
)
LIBRARIES = ("-lopen-pal", "-lpthread", "-ldl")
UCP_LIBRARIES = ("-lpthread", "-ldl")
UCP_FLAGS = ("-fno-semantic-interposition",)
"""Our functions of UCX's names call each other, and nobody stands in front of them."""

_COMPILE_DEADLINE_S = 120


class OpenMpi(msgspec.Struct, frozen=True):
    """One installed Open MPI.

    :ivar component_path: where it looks for its components by default.
    :ivar mpicc: its compiler wrapper; None if it was found by its launcher, to run jobs only.
    :ivar ucx: whether it has a PML ucx.
    """

    version: str
    component_path: str
    mpicc: Path | None = None
    ucx: bool = False


class Info(msgspec.Struct, frozen=True):
    """What `kawarimi hooks info` says.

    :ivar reason: why the component cannot be used; empty if it can.
    """

    open_mpi: OpenMpi
    component: Path | None
    usable: bool
    reason: str


def cache_directory() -> Path:
    """Where everything lies that can be made again."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "kawarimi"


def native_sources() -> Path:
    """Find the directory of the component's C sources."""
    return Path(str(resources.files(__package__) / "native"))


def _run(command: Sequence[str | Path], what: str, hint: str = "") -> str:
    """Run a program and return what it printed.

    :param hint: for whoever sees it fail.

    :raise ExecutionFailed: it failed; the facts hold its output.
    """
    try:
        done = subprocess.run(
            [str(word) for word in command],
            capture_output=True,
            text=True,
            timeout=_COMPILE_DEADLINE_S,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        raise ExecutionFailed(
            Slug.BUILD_FAILED,
            f"{what} failed",
            untouched="components that were built before",
            hint=hint,
            facts={"command": " ".join(map(str, command)), "output": error.stderr.strip()},
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ExecutionFailed(
            Slug.BUILD_FAILED,
            f"{what} did not end within {_COMPILE_DEADLINE_S} s",
            untouched="components that were built before",
            facts={"command": " ".join(map(str, command))},
        ) from error
    return done.stdout


def _look_at(program: str, version_option: str, hint: str) -> tuple[Path, OpenMpi]:
    """Look at the Open MPI that a program belongs to, by the `ompi_info` beside it.

    :raise UsageError: there is no such program, or it is not Open MPI's.
    """
    found = shutil.which(program)
    if found is None:
        raise UsageError(
            Slug.OPEN_MPI_MISSING, f"no program {program!r} is on PATH", untouched="everything",
            hint=hint,
        )  # fmt: skip
    try:
        said = _run([found, version_option], f"asking {found} for its version")
        about = str(Path(found).with_name("ompi_info"))
        paths = _run([about, "--parsable", "--path", "pkglibdir"], "asking Open MPI for its paths")
        components = _run([about, "--parsable"], "asking Open MPI for its components")
    except (ExecutionFailed, OSError) as error:
        raise UsageError(
            Slug.OPEN_MPI_MISSING, f"{found} is not part of an Open MPI", untouched="everything"
        ) from error
    version = re.search(r"Open MPI\)? (\d+\.\d+\.\d+)", said)
    directory = re.search(r"^path:pkglibdir:(.*)$", paths, re.MULTILINE)
    if version is None or directory is None:
        raise UsageError(
            Slug.OPEN_MPI_MISSING,
            f"{found} is not part of an Open MPI",
            untouched="everything",
            facts={"said": said.strip()},
        )
    ucx = "\nmca:pml:ucx:" in components
    return Path(found), OpenMpi(version[1], directory[1], ucx=ucx)


def find_open_mpi(mpicc: str = "mpicc") -> OpenMpi:
    """Look at the Open MPI that this compiler wrapper belongs to.

    :raise UsageError: there is none, or it is not Open MPI's.
    """
    hint = "install Open MPI's development files, or name its wrapper with --mpicc"
    found, open_mpi = _look_at(mpicc, "--showme:version", hint)
    return msgspec.structs.replace(open_mpi, mpicc=found)


def find_runtime(mpirun: str = "mpirun") -> OpenMpi:
    """Look at the Open MPI that this launcher belongs to; where jobs only run, there is no mpicc.

    :raise UsageError: there is none, or it is not Open MPI's.
    """
    return _look_at(mpirun, "--version", "install Open MPI, or name its launcher with --mpirun")[1]


def _key(directories: Sequence[Path], words: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for directory in directories:
        for source in sorted(path for path in directory.iterdir() if path.is_file()):
            digest.update(source.name.encode() + b"\0" + source.read_bytes())
    digest.update("\0".join([*words, *COMPILER_FLAGS, *LINKER_FLAGS]).encode())
    return digest.hexdigest()[:16]


def component_directory(open_mpi: OpenMpi, flags: Sequence[str] = ()) -> Path:
    """Where the component for this Open MPI belongs, built or not."""
    words = [open_mpi.component_path, open_mpi.version, *LIBRARIES, *flags]
    return cache_directory() / "hooks" / f"{open_mpi.version}-{_key([native_sources()], words)}"


def ucp_directory(flags: Sequence[str] = ()) -> Path:
    """Where the library of the kind `ucp` belongs, built or not."""
    sources = [native_sources(), native_sources() / "ucp"]
    return cache_directory() / "hooks" / f"ucp-{_key(sources, [*UCP_FLAGS, *flags])}"


def build(open_mpi: OpenMpi, flags: Sequence[str] = ()) -> Path:
    """Build the component unless it is there, and return its directory.

    :param open_mpi: found by its compiler wrapper.
    :param flags: further words for the compiler; they make another component.
    :raise PreflightRefused: this Open MPI's layout is not known; nothing was built.
    :raise ExecutionFailed: the compiler failed; nothing was left behind.
    """
    if open_mpi.version not in KNOWN_VERSIONS:
        raise PreflightRefused(
            Slug.OPEN_MPI_UNSUPPORTED,
            f"Open MPI {open_mpi.version} is not supported (supported: "
            f"{', '.join(KNOWN_VERSIONS)})",
            untouched="everything",
        )
    directory = component_directory(open_mpi, flags)
    if (directory / COMPONENT).exists():
        return directory
    assert open_mpi.mpicc is not None
    with _made_at_once(directory) as partial:
        sources = sorted(native_sources().glob("*.c"))
        command: list[str | Path] = [open_mpi.mpicc, *COMPILER_FLAGS, *flags, *LINKER_FLAGS]
        _run(
            [*command, "-o", partial / COMPONENT, *sources, *LIBRARIES],
            "compiling the component",
            "the headers of Open MPI, libibverbs and librdmacm are needed",
        )
        shutil.copy(native_sources() / HELP_FILE, partial)
    return directory


def build_ucp(compiler: str = "cc", flags: Sequence[str] = ()) -> Path:
    """Build the library of the kind `ucp` unless it is there, and return its path.

    :param flags: further words for the compiler; they make another library.
    :raise ExecutionFailed: the compiler failed; nothing was left behind.
    """
    directory = ucp_directory(flags)
    if (directory / UCP_LIBRARY).exists():
        return directory / UCP_LIBRARY
    native = native_sources()
    with _made_at_once(directory) as partial:
        common = [native / f"{name}.c" for name in UCP_COMMON]
        sources = [*sorted((native / "ucp").glob("*.c")), *common]
        # Not -I: one of our headers is named like one of the C library's.
        include: list[str | Path] = ["-iquote", native, "-iquote", native / "ucp"]
        command: list[str | Path] = [compiler, *COMPILER_FLAGS, *UCP_FLAGS, *flags, *include]
        _run(
            [*command, *LINKER_FLAGS, "-o", partial / UCP_LIBRARY, *sources, *UCP_LIBRARIES],
            "compiling the library",
            "the headers of UCX are needed",
        )
    return directory / UCP_LIBRARY


@contextmanager
def _made_at_once(directory: Path) -> Iterator[Path]:
    """Give a directory to fill, and move it to where it belongs; nothing is left of a failure."""
    partial = directory.with_name(f"{directory.name}.{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        # Two builders make the same content; whoever comes second finds it done.
        if not directory.exists():
            partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def ucp_library(directory: Path | None = None) -> Path | None:
    """Find the library of the kind `ucp`; None if it is not built. Changes nothing.

    :param directory: where to look, if not where `build_ucp` puts it.
    """
    library = (directory or ucp_directory()) / UCP_LIBRARY
    return library if library.exists() else None


def info(open_mpi: OpenMpi, directory: Path | None = None) -> Info:
    """Say whether the component for this Open MPI is there and fits it. Changes nothing.

    :param directory: where to look, if not where `build` puts it.
    """
    directory = directory or component_directory(open_mpi)
    if open_mpi.version not in KNOWN_VERSIONS:
        reason = f"the private layout of Open MPI {open_mpi.version} is not known"
    elif not (directory / COMPONENT).exists():
        reason = f"the component is not in {directory}: run 'kawarimi hooks build'"
    else:
        return Info(open_mpi, directory / COMPONENT, usable=True, reason="")
    return Info(open_mpi, None, usable=False, reason=reason)
