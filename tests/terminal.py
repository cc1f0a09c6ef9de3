"""A pseudo-terminal with a program on it, as a person has."""

from __future__ import annotations

import fcntl
import os
import re
import select
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence


class Terminal:
    """A program whose standard streams and controlling terminal are a pseudo-terminal.

    As a context manager, it ends the program.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        rows: int = 24,
        columns: int = 80,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._master, slave = os.openpty()
        termios.tcsetwinsize(slave, (rows, columns))
        self.attributes = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            argv,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={**os.environ, **(env or {})},
        )
        self._slave = slave  # kept open, so that the terminal and what is in it stay
        self.shown = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def resize(self, rows: int, columns: int) -> None:
        """Change the terminal's size, of which the kernel tells the program."""
        termios.tcsetwinsize(self._master, (rows, columns))

    def until(self, pattern: str, deadline_s: float = 30) -> re.Match[str]:
        """Return the first match in what is shown, and forget all up to its end."""
        give_up = time.monotonic() + deadline_s
        while not (match := re.search(pattern, self.shown)):
            left = give_up - time.monotonic()
            assert left > 0, f"{pattern!r} was not shown: {self.shown!r}"
            if select.select([self._master], [], [], min(left, 1))[0]:
                self.shown += os.read(self._master, 65536).decode()
        self.shown = self.shown[match.end() :]
        return match

    def ended(self, deadline_s: float = 30) -> int:
        """Return the program's exit code, and read the last of what it shows."""
        code = self.process.wait(deadline_s)
        while select.select([self._master], [], [], 0)[0]:
            self.shown += os.read(self._master, 65536).decode()
        return code

    @property
    def is_as_before(self) -> bool:
        """Whether the program has left the terminal's settings as they were."""
        return termios.tcgetattr(self._slave) == self.attributes
