"""`kawarimi agent`."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import click

from kawarimi_agent.control import RUN_DIRECTORY
from kawarimi_agent.settings import FILE, load


@click.command()
@click.option("--config", type=click.Path(path_type=Path), help=f"Instead of {FILE}.")
@click.option("--listen", metavar="ENDPOINT", help="For bridges, such as tcp://192.0.2.11:7117.")
@click.option("--secret-key", metavar="FILE", help="The agent's own secret key.")
@click.option("--bridges", metavar="FOLDER", help="The public keys of the bridges to admit.")
@click.option("--guest", metavar="NAME", help="The guest's name; by default the host name.")
@click.option("--run-directory", metavar="FOLDER", help=f"Its sockets' place: {RUN_DIRECTORY}.")
@click.option("--insecure", is_flag=True, help="Admit everybody; only on the loopback.")
def agent(config: Path | None, insecure: bool, **flags: str | None) -> None:
    """Run the guest agent in the foreground, until SIGTERM or SIGINT.

    Ranks dial it and dial again; it may start late, end, and start again under running jobs.

    Every option but --insecure may also stand in the environment (KAWARIMI_AGENT_LISTEN and so on)
    or in agent.toml; the command line goes first, then the environment. Without --listen no bridge
    can reach it.
    """
    # Imported here: the other commands need nothing of it.
    from kawarimi_agent.daemon import serve

    settings = load(flags, insecure=insecure, file=config)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    asyncio.run(serve(settings))
