"""The verbs of `darkroom endpoints` and `darkroom local`."""

# ruff: noqa: PLC0415 - as in main.py

from pathlib import Path
from typing import Annotated

import typer

from darkroom_cli.session import Session, verb

HELP = {"help_option_names": ["-h", "--help"]}
endpoints = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings=HELP,
    help="Who may be called, with which keys, inside which limits.",
)
local = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings=HELP,
    help="The whole stack on this machine.",
)


@endpoints.command("push")
@verb
def endpoints_push(
    session: Session,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="JSON; - reads standard input.")
    ] = None,
    from_env: Annotated[
        bool,
        typer.Option(
            "--from-env",
            help="Build it from OPENAI_API_KEY, DG_OPENAI_ENDPOINTS, GEMINI_API_KEY and so on.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and show only.")] = False,
) -> None:
    """Check endpoints and write them to the stack's secret. Keys show by fingerprint only."""
    from darkroom_cli import endpoints as verbs

    verbs.push(session, file, from_env=from_env, dry_run=dry_run)


@endpoints.command("show")
@verb
def endpoints_show(session: Session) -> None:
    """Show endpoints, limits, and how they are: breaker, calls in flight, resting keys."""
    from darkroom_cli import endpoints as verbs

    verbs.show(session)


@local.command("up")
@verb
def local_up(session: Session) -> None:
    """Deploy the real template to this machine, with simulated providers. Needs no AWS account.

    It stays until `darkroom local down`.
    """
    from darkroom_cli import local as verbs

    verbs.up(session)


@local.command("down")
@verb
def local_down(session: Session) -> None:
    """Stop the stack on this machine and remove its state: jobs, images, everything."""
    from darkroom_cli import local as verbs

    verbs.down(session)


@local.command("env")
@verb
def local_env(session: Session) -> None:
    """Print what to export for the aws command: eval "$(darkroom local env)"."""
    from darkroom_cli import local as verbs

    verbs.env(session)
