"""`kawarimi completion`: the script by which a shell completes kawarimi's words."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "fish", "zsh"]))
def completion(shell: str) -> None:
    r"""Print the completion script of SHELL.

    \b
    bash:  kawarimi completion bash > ~/.local/share/bash-completion/completions/kawarimi
    zsh:   kawarimi completion zsh > DIRECTORY_IN_fpath/_kawarimi
    fish:  kawarimi completion fish > ~/.config/fish/completions/kawarimi.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None, "click knows these shells"
    program = click.get_current_context().find_root()
    click.echo(kind(program.command, {}, "kawarimi", "_KAWARIMI_COMPLETE").source())
