"""Run other programs: bounded, logged, and ended with everything they started."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from kawarimi_wire.errors import ExecutionFailed, PreflightRefused, Slug

_TAIL_LINES = 12


def require_root(what: str) -> None:
    """Refuse to go on without root.

    :raise PreflightRefused: `not-root`.
    """
    if os.geteuid() != 0:
        raise PreflightRefused(
            Slug.NOT_ROOT,
            f"{what} needs root.",
            untouched="nothing was made",
            hint="run the same command as root, for example with sudo",
        )


def require_programs(names: Iterable[str]) -> None:
    """Refuse to go on while one of these programs is not installed.

    :raise PreflightRefused: `program-missing`, naming all that are missing.
    """
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        raise PreflightRefused(
            Slug.PROGRAM_MISSING,
            f"Not installed: {', '.join(missing)}.",
            untouched="nothing was made",
            hint="run 'make setup', which installs what testbed/debian-packages.txt lists",
            facts={"missing": missing},
        )


def require_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Refuse to go on where a folder's file system has less than `needed_bytes` free.

    :raise PreflightRefused: `no-space`.
    """
    probe = folder
    while not probe.exists():
        probe = probe.parent
    free = shutil.disk_usage(probe).free
    if free < needed_bytes:
        raise PreflightRefused(
            Slug.NO_SPACE,
            f"{what} needs {needed_bytes // 2**20} MiB in {folder}, and {free // 2**20} are free.",
            untouched="nothing was made",
            hint="free some space, or set XDG_CACHE_HOME to a folder that has it",
            facts={"folder": str(folder), "free_bytes": free, "needed_bytes": needed_bytes},
        )


class Programs:
    """Runs programs, in any number of threads, that can be ended together.

    :param log: where their standard error goes, appended; errors name it and quote its end.
    :param scratch: where their temporary files go, which those that are killed leave; the system's
        place if not given.
    """

    def __init__(self, log: Path, *, scratch: Path | None = None) -> None:
        self.log = log
        self._scratch = scratch
        self._running: set[subprocess.Popen[str]] = set()
        self._ended = False
        self._lock = threading.Lock()  # guards both: none starts once all are being ended

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        deadline_s: float,
        cwd: Path | None = None,
    ) -> str:
        """Run a program to its end and return its standard output.

        The program gets a session of its own, and all of that session is killed when the deadline
        passes or an exception (Ctrl-C included) ends the wait: nothing that it started survives. If
        this process is itself killed, the kernel kills the program.

        :param deadline_s: seconds until it is killed.
        :raise ExecutionFailed: `command-failed` or `command-timeout`; `interrupted` after `end`.
        """
        words = [str(word) for word in argv]
        fence = ["setpriv", "--pdeathsig", "KILL", "--"]
        environment = {**os.environ, "TMPDIR": str(self._scratch)} if self._scratch else None
        with self.log.open("ab") as log_file:
            log_file.write(f"$ {' '.join(words)}\n".encode())
            log_file.flush()
            with self._lock:
                if self._ended:
                    raise ExecutionFailed(Slug.INTERRUPTED, f"{words[0]} was not begun.")
                process = subprocess.Popen(
                    [*fence, *words],
                    cwd=cwd,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log_file,
                    start_new_session=True,
                    text=True,
                )
                self._running.add(process)
            try:
                output, _ = process.communicate(timeout=deadline_s)
            except BaseException as error:
                # SIGTERM first: mmdebstrap and dpkg undo what they have mounted and locked.
                _end_session(process)
                if isinstance(error, subprocess.TimeoutExpired):
                    raise self._failed(
                        Slug.COMMAND_TIMEOUT,
                        f"{words[0]} did not end in {deadline_s:.0f} s and was killed.",
                        words,
                    ) from None
                raise
            finally:
                with self._lock:
                    self._running.discard(process)
        if process.returncode != 0:
            tail = self.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
            what = f"{words[0]} failed with exit code {process.returncode}:"
            raise self._failed(
                Slug.COMMAND_FAILED, "\n  ".join([what, *tail]), words, process.returncode
            )
        return output

    def end(self) -> None:
        """End every program that runs, with its session; none is run after this."""
        with self._lock:
            self._ended = True
            for process in self._running:
                _end_session(process)

    def _failed(
        self, slug: Slug, what: str, argv: list[str], exit_code: int | None = None
    ) -> ExecutionFailed:
        facts: dict[str, object] = {"argv": argv, "log": str(self.log)}
        if exit_code is not None:
            facts["exit_code"] = exit_code
        return ExecutionFailed(slug, what, hint=f"see {self.log}", facts=facts)


def _end_session(process: subprocess.Popen[str]) -> None:
    """End a process and everything of its session: first asked, then killed after 5 s."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=5)
