"""The `darkroom` command: its subcommands, their options and their help texts."""

from pathlib import Path
from typing import Annotated

import typer

from darkroom_cli.options import CsvFile, Every, Job, QuoteCommand, SubmitCommand
from darkroom_cli.session import Session, with_session

# Modules are imported where they run: `darkroom --help` and completion must not wait for boto3.
# ruff: noqa: PLC0415


def _typer(help_text: str) -> typer.Typer:
    return typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # plain help is three times as fast, and reads better in 80 columns
        context_settings={"help_option_names": ["-h", "--help"]},
        help=help_text,
    )


app = _typer("""Edit images in bulk: a CSV in, edited images, a manifest and a gallery out.

A first job, after `darkroom local up` or a deployment to AWS:

\b
  darkroom endpoints push --from-env
  darkroom quote products.csv
  darkroom submit products.csv --wait
  darkroom download jobs/products out
""")
endpoints = _typer("Push and show providers, keys and limits.")
local = _typer("Run the whole stack on this machine.")


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(f"darkroom {version('darkroom')}")
        raise typer.Exit


@app.callback()
def _main(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    pass


@app.command(cls=SubmitCommand)
@with_session
def submit(
    session: Session,
    csv: CsvFile,
    *,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="Wait until the job ends; exit with 1 unless it is done."),
    ] = False,
    to: Annotated[str, typer.Option(help="Folder in the input bucket.", metavar="PREFIX")] = "jobs",
    every: Every = 2.0,
    allow_outside: Annotated[
        bool,
        typer.Option("--allow-outside", help="Also upload images outside the folder of the CSV."),
    ] = False,
    **options: object,
) -> None:
    """Start a job from a CSV.

    Uploads the local images that the CSV names, if they are missing or changed, then the CSV, and
    prints the job's name. Submitting a corrected CSV again processes only new and changed rows.
    """
    from darkroom_cli.submit import submit

    submit(session, csv, to, options, wait=wait, every=every, allow_outside=allow_outside)


@app.command()
@with_session
def status(
    session: Session,
    job: Job,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Update until the job ends.")
    ] = False,
    every: Every = 2.0,
) -> None:
    """Show a job's progress.

    Exits with 1 if the job failed or was stopped.
    """
    from darkroom_cli import status

    if watch:
        status.watch(session, job, every=every)
    else:
        status.status(session, job)


@app.command()
@with_session
def download(
    session: Session,
    job: Job,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", file_okay=False, help="Created if missing.")
    ],
) -> None:
    """Download images, manifest and gallery.

    Prints the path of the folder's report.html, which works offline. Run it again to continue an
    interrupted download.
    """
    from darkroom_cli.download import download

    download(session, job, folder)


@app.command(cls=QuoteCommand)
@with_session
def quote(
    session: Session,
    csv: CsvFile,
    call_seconds: Annotated[
        float,
        typer.Option(min=0.1, help="Assumed duration of a call.", metavar="SECONDS"),
    ] = 20.0,
    endpoints_file: Annotated[
        Path | None,
        typer.Option(
            "--endpoints", help="Use the endpoints of this file, not the stack's.", metavar="FILE"
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Rows in work at once, if different from the stack's."),
    ] = None,
    **options: object,
) -> None:
    """Estimate a job's cost and duration.

    Starts nothing and calls no provider. Uses the models and limits of the stack's endpoints.
    """
    from darkroom_cli.quote import quote

    quote(
        session, csv, options, call_seconds=call_seconds, endpoints=endpoints_file, workers=workers
    )


@app.command()
@with_session
def failures(
    session: Session,
    job: Job,
    reason: Annotated[
        str | None,
        typer.Option(help="Only rows with this reason, such as refused.", metavar="R"),
    ] = None,
) -> None:
    """List failed and dead rows with reasons.

    Read from the manifest once the job is done, before that from the ledger.
    """
    from darkroom_cli.jobs import failures

    failures(session, job, reason)


@app.command()
@with_session
def redrive(
    session: Session,
    job: Annotated[str | None, typer.Argument(metavar="JOB", help="Only this job's rows.")] = None,
    reason: Annotated[
        str | None,
        typer.Option(help="Only rows dead for this reason, such as unavailable.", metavar="R"),
    ] = None,
) -> None:
    """Return dead rows to the rows queue.

    Without JOB and --reason, all of them. An interrupted redrive loses nothing: run it again.
    """
    from darkroom_cli.redrive import redrive

    redrive(session, job, reason)


@app.command()
@with_session
def stop(session: Session, job: Job) -> None:
    """Stop a job.

    Calls in flight finish; rows not yet sent fail as `stopped`. Submit the CSV again to continue.
    """
    from darkroom_cli.jobs import stop

    stop(session, job)


@app.command("list")
@with_session
def list_jobs(
    session: Session,
    prefix: Annotated[
        str, typer.Argument(metavar="PREFIX", help="Only jobs whose names start with it.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, help="How many of the newest jobs to list.")] = 20,
) -> None:
    """List the newest jobs."""
    from darkroom_cli.jobs import list_jobs

    list_jobs(session, prefix, limit)


app.add_typer(endpoints, name="endpoints")
app.add_typer(local, name="local")


@endpoints.command("push")
@with_session
def endpoints_push(
    session: Session,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="JSON; - reads standard input.")
    ] = None,
    from_env: Annotated[
        bool,
        typer.Option(
            "--from-env", help="Use OPENAI_API_KEY, DG_OPENAI_ENDPOINTS, GEMINI_API_KEY and so on."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Validate and show, but do not write.")
    ] = False,
) -> None:
    """Write endpoints to the stack's secret.

    They are validated first. Keys are shown by fingerprint only.
    """
    from darkroom_cli.endpoints import push

    push(session, file, from_env=from_env, dry_run=dry_run)


@endpoints.command("show")
@with_session
def endpoints_show(session: Session) -> None:
    """Show endpoints, limits and state.

    The state includes the circuit breaker, calls in flight and keys that are cooling down.
    """
    from darkroom_cli.endpoints import show

    show(session)


@local.command("up")
@with_session
def local_up(session: Session) -> None:
    """Start the stack on this machine.

    Deploys the real template with simulated providers; needs no AWS account. It runs until
    `darkroom local down`.
    """
    from darkroom_cli.local import up

    up(session)


@local.command("down")
@with_session
def local_down(session: Session) -> None:
    """Stop the stack and remove its state.

    Jobs, images and everything else in it are deleted.
    """
    from darkroom_cli.local import down

    down(session)


@local.command("env")
@with_session
def local_env(session: Session) -> None:
    """Print environment variables for the aws command.

    Use it as eval "$(darkroom local env)".
    """
    from darkroom_cli.local import env

    env(session)


if __name__ == "__main__":
    app()
