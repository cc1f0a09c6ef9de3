"""Entry point of `kawarimi`: finds the subcommand, prints its errors, sets its exit code."""

from __future__ import annotations

import importlib
import signal
import sys

import click
from click.shell_completion import CompletionItem

from kawarimi_bridge.cli.output import print_error
from kawarimi_wire.errors import ExitCode, Interrupted, KawarimiError, Slug, UsageError

SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "abort": ("kawarimi_bridge.cli.operations:abort", "Ask a running operation to go back."),
    "agent": ("kawarimi_agent.cli:agent", "The guest agent, in the foreground."),
    "check": ("kawarimi_bridge.cli.migrate:check", "Whether guests could be moved now."),
    "cleanup": ("kawarimi_bridge.cli.operations:cleanup", "End what operations have left."),
    "completion": (
        "kawarimi_bridge.cli.completion:completion",
        "What makes a shell complete kawarimi's words.",
    ),
    "demo": ("kawarimi_testbed.demo_cli:demo", "Watch a program compute on while its VMs move."),
    "guests": ("kawarimi_bridge.cli.operations:guests", "The configured guests, as they are."),
    "hooks": ("kawarimi_ompi.cli:hooks", "The native component that ranks load: build, info."),
    "jobs": ("kawarimi_bridge.cli.jobs:jobs", "The MPI jobs that can be switched."),
    "keys": (
        "kawarimi_bridge.cli.keys:keys",
        "The keys by which agents and bridges know each other.",
    ),
    "migrate": ("kawarimi_bridge.cli.migrate:migrate", "Move guests and the jobs in them."),
    "recover": (
        "kawarimi_bridge.cli.migrate:recover",
        "Bring jobs back to the fabric after a degraded operation.",
    ),
    "report": ("kawarimi_bridge.report.cli:report", "What operations did: text, HTML, images."),
    "run": ("kawarimi_ompi.cli:run", "Start an MPI job whose interconnect can be exchanged."),
    "status": ("kawarimi_bridge.cli.jobs:status", "How a job or an operation stands."),
    "switch": ("kawarimi_bridge.cli.jobs:switch", "Move a running job to another BTL."),
    "testbed": (
        "kawarimi_testbed.cli:testbed",
        "Guests with a soft-RoCE HCA under QEMU, for development and tests.",
    ),
}
"""Subcommand → (where it is, its line in `--help`). The line stands here so that `kawarimi --help`
imports none of them."""


class LazyGroup(click.Group):
    """A command group whose members are imported only when one of them is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the subcommands without importing them."""
        return sorted(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one subcommand; None if there is none of that name."""
        if cmd_name not in SUBCOMMANDS:
            return None
        module, _, attribute = SUBCOMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a subcommand from the table, an option as every command does."""
        names = [name for name in sorted(SUBCOMMANDS) if name.startswith(incomplete)]
        items = [CompletionItem(name, help=SUBCOMMANDS[name][1]) for name in names]
        return items + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of subcommands from the table, not from their modules."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, SUBCOMMANDS[name][1]) for name in sorted(SUBCOMMANDS)])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kawarimi", message="kawarimi %(version)s")
def cli() -> None:
    r"""Move virtual machines under a running MPI job, between InfiniBand and Ethernet.

    \b
    Exit codes: 0 completed, 1 failed and rolled back, 2 usage or configuration,
    3 refused before anything was touched, 4 completed but degraded to TCP,
    5 needs cleanup, 130 interrupted and rolled back.
    """


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code. Never raises for an error of ours."""
    arguments = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGTERM, _interrupt)
    as_json = "--json" in arguments
    try:
        result = cli.main(args=arguments, prog_name="kawarimi", standalone_mode=False)
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except (click.Abort, KeyboardInterrupt):
        error: KawarimiError = Interrupted(Slug.INTERRUPTED, "Interrupted.")
    except click.exceptions.NoArgsIsHelpError as usage:
        click.echo(usage.format_message(), err=True)
        return ExitCode.USAGE
    except click.ClickException as usage:
        where = usage.ctx.command_path if isinstance(usage, click.UsageError) and usage.ctx else ""
        error = UsageError(
            Slug.BAD_USAGE,
            usage.format_message(),
            untouched="nothing was begun",
            hint=f"see '{where or 'kawarimi'} --help'",
        )
    except KawarimiError as ours:
        error = ours
    else:
        return int(result) if isinstance(result, int) else ExitCode.COMPLETED
    print_error(error, as_json=as_json)
    return error.exit_code


def _interrupt(*_: object) -> None:
    """Make of a polite end an interrupt, so that what was begun is undone."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a script's background job
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
