"""The `darkroom` command: its verbs, their options, their help. What they do lies in modules."""

# Verbs are imported where they run: `darkroom --help` and completion must not wait for boto3.
# ruff: noqa: PLC0415, PLR0917

from pathlib import Path
from typing import Annotated

import typer

from darkroom_cli.session import Session, verb

_HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    name="darkroom",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help is three times as fast, and reads better in 80 columns
    context_settings=_HELP,
    help="""Edit images in bulk: a CSV in, edited images, a manifest and a gallery out.

A first job, after `darkroom local up` or a deployment to AWS:

\b
  darkroom endpoints push --from-env
  darkroom quote products.csv
  darkroom submit products.csv --wait
  darkroom download jobs/products out
""",
)
endpoints = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings=_HELP,
    help="Who may be called, with which keys, inside which limits.",
)
local = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings=_HELP,
    help="The whole stack on this machine.",
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


CsvFile = Annotated[
    Path,
    typer.Argument(
        metavar="CSV", exists=True, dir_okay=False, readable=True, help="A .csv or .csv.gz file."
    ),
]
Job = Annotated[
    str,
    typer.Argument(
        metavar="JOB", help="Named after its CSV: jobs/products.csv is the job jobs/products."
    ),
]
Every = Annotated[
    float, typer.Option("--every", min=0.2, help="Seconds between two looks.", metavar="SECONDS")
]


def _job_option(name: str, text: str, metavar: str) -> object:
    return typer.Option(name, help=text, metavar=metavar)


FilterRows = Annotated[
    str | None,
    _job_option(
        "--filter-rows", "Do only these rows: 0:50, :10, 5,7,20:30 (the first is 0).", "ROWS"
    ),
]
Resume = Annotated[
    bool | None,
    typer.Option(
        "--resume/--no-resume",
        help="Keep rows that succeeded in an earlier upload (the default), or edit them again.",
        show_default=False,
    ),
]
RetryFailed = Annotated[
    bool,
    typer.Option(
        "--retry-failed",
        help="Also do rows again that failed in an earlier upload.",
    ),
]
Budget = Annotated[
    str | None,
    _job_option(
        "--budget-usd", "Never spend more than this; rows beyond it fail as `budget`.", "USD"
    ),
]
Model = Annotated[
    str | None, _job_option("--model", "For rows that name no model themselves.", "NAME")
]
Aspect = Annotated[
    str | None, _job_option("--aspect-ratio", "For rows without one: 1:1, 2:3, 16:9 …", "W:H")
]
Resolution = Annotated[
    str | None, _job_option("--resolution", "For rows without one: 1K, 2K or 4K.", "SIZE")
]
Quality = Annotated[
    str | None, _job_option("--quality", "For rows without one: low, medium, high.", "NAME")
]
Attempts = Annotated[
    str | None,
    _job_option("--max-attempts", "Tries per row before it is dead (default 5).", "NUMBER"),
]
InstructionColumn = Annotated[
    str | None,
    _job_option("--instruction-column", "The column with the instructions.", "COLUMN"),
]
OutputNameColumn = Annotated[
    str | None,
    _job_option("--output-name-column", "The column with the pictures' names.", "COLUMN"),
]


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

    verbs.status(session, job, watch=watch, every=every)


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
    filter_rows: FilterRows = None,
    model: Model = None,
    aspect_ratio: Aspect = None,
    resolution: Resolution = None,
    quality: Quality = None,
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
        "instruction_column": instruction_column,
        "output_name_column": output_name_column,
    }
    verbs.quote(session, csv, given)


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


app.add_typer(endpoints, name="endpoints")
app.add_typer(local, name="local")


if __name__ == "__main__":
    app()
