"""CURVE key pairs in ZeroMQ's certificate files: `NAME.key` is public, `NAME.key_secret` is not.

An agent admits the bridges whose public keys lie in a folder of its own; a bridge knows each agent
by the agent's public key. A pair is named after its machine: `vm1.key` is the guest vm1's.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import zmq
import zmq.auth

from kawarimi_wire.errors import Slug, UsageError

PUBLIC, SECRET = ".key", ".key_secret"

_HEAD = "#   A CURVE {what} of kawarimi, for {name}. {advice}\n\nmetadata\ncurve\n"


class KeyPair(msgspec.Struct, frozen=True):
    """One's own keys, as Z85 text."""

    public: bytes
    secret: bytes


def keys_folder() -> Path:
    """Return where keys are kept: /etc/kawarimi/keys for root, else the user's own folder."""
    if os.geteuid() == 0:
        return Path("/etc/kawarimi/keys")
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "kawarimi/keys"


def generate(folder: Path, name: str) -> Path:
    """Make a key pair in a folder, and return the file of the public one.

    The folder is made if need be, for its owner alone; so is the secret key.

    :raise UsageError: `bad-configuration`: there is a pair of this name, or the folder cannot be
        written; an existing pair is as it was.
    """
    public, secret = zmq.curve_keypair()
    shown = _HEAD.format(what="public key", name=name, advice="Give it to whom it may concern.")
    shown += f'    public-key = "{public.decode()}"\n'
    kept = _HEAD.format(what="key pair", name=name, advice="DO NOT COPY OR SHOW IT.")
    kept += f'    public-key = "{public.decode()}"\n    secret-key = "{secret.decode()}"\n'
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (folder / f"{name}{PUBLIC}").exists():
            raise FileExistsError(17, "there is a key of this name already")
        _write(folder / f"{name}{SECRET}", kept, 0o600)
        _write(folder / f"{name}{PUBLIC}", shown, 0o644)
    except OSError as error:
        raise UsageError(
            Slug.BAD_CONFIGURATION,
            f"No keys were made in {folder} for {name!r}: {error.strerror}.",
            untouched="what is there",
            hint="name another --dir or NAME, or remove the old pair if nobody uses it",
        ) from error
    return folder / f"{name}{PUBLIC}"


def _write(path: Path, text: str, mode: int) -> None:
    """Write a new file with this mode, whatever the umask.

    :raise FileExistsError: there is one.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "w") as file:
        os.fchmod(descriptor, mode)
        file.write(text)


def load_public(path: Path) -> bytes:
    """Return the public key in a certificate file.

    :raise UsageError: `bad-configuration`, with the file's name.
    """
    return _load(path)[0]


def load_pair(path: Path) -> KeyPair:
    """Return the key pair in a secret certificate file.

    :raise UsageError: `bad-configuration`, with the file's name; also if others than its owner
        may read it.
    """
    public, secret = _load(path)
    if secret is None:
        raise _unusable(path, "it holds no secret key")
    if path.stat().st_mode & 0o077:
        raise _unusable(path, "others than its owner may read it; 'chmod 600' it")
    return KeyPair(public, secret)


def _load(path: Path) -> tuple[bytes, bytes | None]:
    try:
        path.open("rb").close()  # says what is wrong with the file; zmq does not
        public, secret = zmq.auth.load_certificate(path)
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error
    except ValueError as error:
        raise _unusable(path, "it is no ZeroMQ certificate") from error
    for key in (public, secret):
        if key is not None and len(key) != 40:
            raise _unusable(path, "a key is 40 characters long")
    return public, secret


def _unusable(path: Path, why: str) -> UsageError:
    return UsageError(
        Slug.BAD_CONFIGURATION,
        f"The key file {path} cannot be used: {why}.",
        untouched="nothing was begun",
        hint="'kawarimi keys generate' makes one",
        facts={"file": str(path)},
    )
