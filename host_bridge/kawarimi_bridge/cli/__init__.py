"""The `kawarimi` command line. Subcommands are imported when they are called."""
