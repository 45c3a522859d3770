"""The `darkroom` command: its verbs, their options, their help. What they do lies in modules."""

# Verbs are imported where they run: `darkroom --help` and completion must not wait for boto3.
# ruff: noqa: PLC0415, PLR0917

from pathlib import Path
from typing import Annotated

import typer

from darkroom_cli.groups import HELP, endpoints, local
from darkroom_cli.options import (
    Aspect,
    Attempts,
    Background,
    Budget,
    CsvFile,
    Every,
    FilterRows,
    InstructionColumn,
    Job,
    Model,
    OutputNameColumn,
    Quality,
    Resolution,
    Resume,
    RetryFailed,
)
from darkroom_cli.session import Session, verb

app = typer.Typer(
    name="darkroom",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help is three times as fast, and reads better in 80 columns
    context_settings=HELP,
    help="""Edit images in bulk: a CSV in, edited images, a manifest and a gallery out.

A first job, after `darkroom local up` or a deployment to AWS:

\b
  darkroom endpoints push --from-env
  darkroom quote products.csv
  darkroom submit products.csv --wait
  darkroom download jobs/products out
""",
)


def _print_version(wanted: bool) -> None:
    if wanted:
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


@app.command()
@verb
def submit(
    session: Session,
    csv: CsvFile,
    wait: Annotated[
        bool, typer.Option("--wait", help="Watch the job until it ends; exit 1 unless it is done.")
    ] = False,
    to: Annotated[
        str, typer.Option("--to", help="Folder in the input bucket.", metavar="PREFIX")
    ] = "jobs",
    every: Every = 2.0,
    filter_rows: FilterRows = None,
    budget_usd: Budget = None,
    resume: Resume = None,
    retry_failed: RetryFailed = False,
    model: Model = None,
    aspect_ratio: Aspect = None,
    resolution: Resolution = None,
    quality: Quality = None,
    background: Background = None,
    max_attempts: Attempts = None,
    instruction_column: InstructionColumn = None,
    output_name_column: OutputNameColumn = None,
) -> None:
    """Start a job: upload the local images a CSV names, then the CSV. Prints the job's name.

    Images are uploaded in parallel, only those missing or changed. Submitting a corrected CSV again
    does only what is new or changed.
    """
    from darkroom_cli import submit as verbs

    given = {
        "filter_rows": filter_rows,
        "budget_usd": budget_usd,
        "resume": resume,
        "retry_failed": retry_failed or None,
        "model": model,
        "aspect_ratio": aspect_ratio,
        "resolution": resolution,
        "quality": quality,
        "background": background,
        "max_attempts": max_attempts,
        "instruction_column": instruction_column,
        "output_name_column": output_name_column,
    }
    verbs.submit(session, csv, to, given, wait=wait, every=every)


@app.command()
@verb
def status(
    session: Session,
    job: Job,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Until the job ends.")] = False,
    every: Every = 2.0,
) -> None:
    """Show how far a job is. Exits with 1 for a job that failed or was stopped."""
    from darkroom_cli import status as verbs
    from darkroom_cli.watch import watch_job

    if watch:
        watch_job(session, job, every=every)
    else:
        verbs.status(session, job)


@app.command()
@verb
def download(
    session: Session,
    job: Job,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", file_okay=False, help="Made if it is not there.")
    ],
) -> None:
    """Fetch a job's images, manifest and gallery. Run it again to go on where it stopped.

    Prints the path of the folder's report.html, which works offline.
    """
    from darkroom_cli import download as verbs

    verbs.download(session, job, folder)


@app.command()
@verb
def quote(
    session: Session,
    csv: CsvFile,
    call_seconds: Annotated[
        float,
        typer.Option("--call-seconds", min=0.1, help="How long a call takes.", metavar="SECONDS"),
    ] = 20.0,
    endpoints_file: Annotated[
        Path | None,
        typer.Option("--endpoints", help="Of this file, not of the stack.", metavar="FILE"),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Rows in work at once, if not as the stack's."),
    ] = None,
    filter_rows: FilterRows = None,
    model: Model = None,
    aspect_ratio: Aspect = None,
    resolution: Resolution = None,
    quality: Quality = None,
    background: Background = None,
    instruction_column: InstructionColumn = None,
    output_name_column: OutputNameColumn = None,
) -> None:
    """Tell what a job would cost and how long it would take.

    Starts nothing, calls no provider. Models and limits are those of the stack's endpoints.
    """
    from darkroom_cli import quote as verbs

    given = {
        "filter_rows": filter_rows,
        "model": model,
        "aspect_ratio": aspect_ratio,
        "resolution": resolution,
        "quality": quality,
        "background": background,
        "instruction_column": instruction_column,
        "output_name_column": output_name_column,
    }
    verbs.quote(
        session, csv, given, call_seconds=call_seconds, endpoints=endpoints_file, workers=workers
    )


@app.command()
@verb
def failures(
    session: Session,
    job: Job,
    reason: Annotated[
        str | None, typer.Option("--reason", help="Only these, such as refused.", metavar="R")
    ] = None,
) -> None:
    """List the rows that failed or are dead, with reason and detail.

    From the manifest once the job is done, before that from the ledger.
    """
    from darkroom_cli import failures as verbs

    verbs.failures(session, job, reason)


@app.command()
@verb
def redrive(
    session: Session,
    job: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="Only this job's rows.")
    ] = None,
    reason: Annotated[
        str | None,
        typer.Option("--reason", help="Only rows dead for this, such as unavailable.", metavar="R"),
    ] = None,
) -> None:
    """Bring dead rows back from the dead-letter queue.

    Without JOB and --reason, all of them. Nothing is lost when it is interrupted: run it again.
    """
    from darkroom_cli import redrive as verbs

    verbs.redrive(session, job, reason)


@app.command()
@verb
def stop(session: Session, job: Job) -> None:
    """Stop a job.

    Calls under way end, rows not yet sent fail as `stopped`. Submit the CSV again to go on.
    """
    from darkroom_cli import jobs as verbs

    verbs.stop(session, job)


@app.command("list")
@verb
def list_jobs(
    session: Session,
    prefix: Annotated[str, typer.Argument(metavar="[PREFIX]", help="Only below it.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, help="The newest ones.")] = 20,
) -> None:
    """List the newest jobs."""
    from darkroom_cli import jobs as verbs

    verbs.list_jobs(session, prefix, limit)


app.add_typer(endpoints, name="endpoints")
app.add_typer(local, name="local")


if __name__ == "__main__":
    app()
