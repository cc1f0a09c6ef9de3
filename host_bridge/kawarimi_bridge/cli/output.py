"""How commands speak: results and `--json` on stdout, progress and errors on stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import msgspec

from kawarimi_wire.errors import KawarimiError
from kawarimi_wire.record import Entry

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def _plain(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError  # msgspec then names the type


def print_json(value: object) -> None:
    """Print one JSON object on stdout; paths as text."""
    encoded = msgspec.json.encode(value, enc_hook=_plain)
    click.echo(msgspec.json.format(encoded, indent=2).decode())


def print_error(error: KawarimiError, *, as_json: bool) -> None:
    """Print an error for people on stderr, and with `as_json` as one object on stdout too."""
    if as_json:
        print_json({"error": error.as_dict()})
    print_error_dict(error.as_dict())


def print_error_dict(error: Mapping[str, Any]) -> None:
    """Print an error for people on stderr, as `KawarimiError.as_dict` describes it."""
    lines = [f"kawarimi: error [{error['slug']}]: {error['what']}"]
    lines += [f"  {name.replace('_', ' ')}: {value}" for name, value in error["facts"].items()]
    if error["untouched"]:
        lines.append(f"  untouched: {error['untouched']}")
    if error["hint"]:
        lines.append(f"  do: {error['hint']}")
    click.echo("\n".join(lines), err=True)


class Watch:
    """Shows an operation's transitions: as JSON lines on stdout, or on stderr on a terminal."""

    def __init__(self, *, lines: bool) -> None:
        self._lines = lines
        self._shown = sys.stderr.isatty() and not lines

    def entry(self, entry: Entry) -> None:
        """Show one entry."""
        if self._lines:
            click.echo(msgspec.json.encode(entry).decode())
        elif self._shown and entry.phase and entry.state:
            whose = f" {entry.guest}" if entry.guest else ""
            why = f": {entry.what}" if entry.what else ""
            click.echo(f"{entry.at_s:8.2f} s  {entry.phase}{whose} {entry.state}{why}", err=True)


_ERASE = "\x1b[K"
"""Erases the rest of a terminal's line, where a longer title may have been."""


class Progress:
    """Nested, timed steps on stderr; silent where stderr is not a terminal.

    Prints one line when a step ends; the step in progress is shown in place.
    """

    def __init__(self, *, enabled: bool | None = None) -> None:
        self.enabled = sys.stderr.isatty() if enabled is None else enabled
        self._depth = 0

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Time one step; steps may nest."""
        started = time.monotonic()
        indent = "  " * self._depth
        if self.enabled:
            click.echo(f"{indent}· {title} …{_ERASE}\r", err=True, nl=False)
        self._depth += 1
        mark = "✗"
        try:
            yield
            mark = "✓"
        finally:
            self._depth -= 1
            if self.enabled:
                took = f"({time.monotonic() - started:.1f} s)"
                click.echo(f"{indent}{mark} {title} {took}{_ERASE}", err=True)
