"""`kawarimi report`: list operations, show one, draw it."""

from __future__ import annotations

import shutil
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from kawarimi_bridge.cli.output import json_option, print_json
from kawarimi_bridge.operations import OperationFolder
from kawarimi_bridge.report import terminal
from kawarimi_bridge.report.account import Account, account
from kawarimi_bridge.report.tables import Damaged
from kawarimi_bridge.report.traffic import Traffic, traffic
from kawarimi_wire.errors import PreflightRefused, Slug, UsageError

_HTML = "report.html"


def _complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    names = [folder.operation for folder in OperationFolder.all()]
    return [CompletionItem(name) for name in ("last", *names) if name.startswith(incomplete)]


@click.command()
@click.argument("operation", required=False, shell_complete=_complete)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to write the files; the operation's own folder if not given.",
)
@click.option("--text", "text_only", is_flag=True, help="Write no files (needs no matplotlib).")
@json_option
def report(operation: str | None, out: Path | None, text_only: bool, as_json: bool) -> None:
    """Show what an operation did, and write it as one HTML file and PNGs.

    OPERATION is an id, a beginning of one, or `last`; without it, all operations are listed. An
    operation that still runs, or was killed, is shown as far as its journal tells. `--json` prints
    the record and writes no files.
    """
    if operation is None:
        _list(as_json)
        return
    folder = OperationFolder.find(operation)
    one = account(folder)
    if as_json:
        print_json(one)
        return
    traffics = traffic(folder.samples())
    click.echo(terminal.text(one, traffics, shutil.get_terminal_size().columns))
    if not text_only:
        click.echo()
        for path in _write(one, traffics, out or folder.folder):
            click.echo(path)


def _list(as_json: bool) -> None:
    accounts = [_account_or_damaged(folder) for folder in OperationFolder.all()]
    if as_json:
        print_json({"operations": accounts})
    elif accounts:
        click.echo(terminal.listing(accounts))
    else:
        click.echo("no operations yet")


def _account_or_damaged(folder: OperationFolder) -> Account | Damaged:
    try:
        return account(folder)
    except PreflightRefused:
        return Damaged(folder.operation)


def _write(one: Account, traffics: list[Traffic], target: Path) -> list[Path]:
    """Write the report's files and return them.

    :raise PreflightRefused: `library-missing`; nothing was written.
    :raise UsageError: `bad-usage` where the folder cannot be written.
    """
    from kawarimi_bridge.report.drawing import images
    from kawarimi_bridge.report.page import page

    drawn = images(one, traffics)
    files = {_HTML: page(one, drawn).encode(), **drawn}
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (target / name).write_bytes(content)
    except OSError as error:
        raise UsageError(
            Slug.BAD_USAGE,
            f"The report cannot be written: {error}.",
            hint="name another folder with '--out'",
        ) from error
    return [target / name for name in files]
