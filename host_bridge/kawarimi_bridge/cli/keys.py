"""`kawarimi keys`: make and show the CURVE keys by which agents and bridges know each other."""

from __future__ import annotations

import socket
from pathlib import Path

import click
import msgspec

from kawarimi_bridge.cli.output import json_option, print_json
from kawarimi_wire.errors import Slug, UsageError
from kawarimi_wire.keys import PUBLIC, SECRET, generate, keys_folder, load_public

_folder_option = click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path),
    help="Where keys are kept: /etc/kawarimi/keys for root, ~/.config/kawarimi/keys for others.",
)


class Key(msgspec.Struct, frozen=True):
    """One key of a folder.

    :ivar secret: the file of its secret half; empty if that is not here.
    """

    name: str
    public: str
    file: str
    secret: str


@click.group()
def keys() -> None:
    """Make and show the keys by which agents and bridges know each other.

    Each machine has a pair of its own. A guest's agent admits the bridges whose public keys lie in
    its folder of bridges; a bridge knows each agent by the agent's public key.
    """


def _key(file: Path) -> Key:
    secret = file.with_suffix(SECRET)
    public = load_public(file).decode()
    return Key(file.stem, public, str(file), str(secret) if secret.exists() else "")


@keys.command("generate")
@click.argument("name", required=False)
@_folder_option
@json_option
def generate_command(name: str | None, folder: Path | None, as_json: bool) -> None:
    """Make a key pair, by default named after this machine. An existing one is never replaced."""
    name = name or socket.gethostname()
    if not name or "/" in name or name.startswith("."):
        raise UsageError(Slug.BAD_USAGE, f"{name!r} cannot be the name of a key pair.")
    key = _key(generate(folder or keys_folder(), name))
    if as_json:
        print_json(key)
        return
    click.echo(f"{key.name}: public key {key.file}, secret key {key.secret}")


@keys.command("show")
@_folder_option
@json_option
def show_command(folder: Path | None, as_json: bool) -> None:
    """List the public keys of a folder; secret ones are never shown."""
    folder = folder or keys_folder()
    found = [_key(file) for file in sorted(folder.glob(f"*{PUBLIC}"))]
    if as_json:
        print_json(found)
        return
    for key in found:
        click.echo(f"{key.name:<16} {key.public}  {'own' if key.secret else 'public only'}")
