"""The `darkroom` command: its subcommands, their options and their help texts."""

from pathlib import Path
from typing import Annotated

import typer

from darkroom_cli.options import (
    DEFAULT_FOLDER,
    Batch,
    CsvOrFolder,
    Every,
    Job,
    QuoteCommand,
    SubmitCommand,
)
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

A first job on this machine, from a folder of photos, with simulated providers:

\b
  darkroom local up
  darkroom submit --local photos/ --instruction "Make it a watercolour" --wait
  darkroom open --local jobs/photos

On AWS, after `make deploy`:

\b
  darkroom endpoints push --from-env
  darkroom quote products.csv
  darkroom submit products.csv --wait
  darkroom open jobs/products
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
    csv: CsvOrFolder,
    *,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait",
            help="Wait until the job ends; exit with 3 if rows failed, with 1 if the job did.",
        ),
    ] = False,
    to: Annotated[
        str, typer.Option(help="Folder in the input bucket.", metavar="PREFIX")
    ] = DEFAULT_FOLDER,
    every: Every = 2.0,
    trial: Annotated[
        int | None,
        typer.Option(
            "--try",
            min=1,
            help="Edit this many rows first, then show the price of the rest and ask.",
            metavar="ROWS",
        ),
    ] = None,
    yes: Annotated[
        bool,
        typer.Option(
            "--yes", help="Do not ask before rows are edited again, or before the rest of --try."
        ),
    ] = False,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            help="With --try: edit the rows with each of these models, and show them side by side.",
            metavar="MODEL,MODEL",
        ),
    ] = None,
    batch: Batch = False,
    job: Annotated[
        str | None,
        typer.Option(
            "--job",
            help="The CSV contains corrected rows of this job: its failed.csv, edited.",
            metavar="JOB",
        ),
    ] = None,
    allow_outside: Annotated[
        bool,
        typer.Option("--allow-outside", help="Also upload images outside the folder of the CSV."),
    ] = False,
    replace_images: Annotated[
        bool,
        typer.Option(
            "--replace-images",
            help="Edit the rows again whose images on this machine have changed.",
        ),
    ] = False,
    **options: object,
) -> None:
    """Start a job from a CSV, or from a folder of images and an instruction.

    Uploads the local images that the CSV names, if they are missing or changed, then the CSV, and
    prints the job's name. Submitting a corrected CSV again processes only new and changed rows; it
    says how many of them were edited before, and asks.
    """
    from darkroom_cli.corrections import submit_corrections
    from darkroom_cli.error_messages import UsageMistake
    from darkroom_cli.local_files import csv_of_folder
    from darkroom_cli.options import with_batch_mode
    from darkroom_cli.status import exit_as
    from darkroom_cli.submit import Upload, submit
    from darkroom_cli.trial import submit_comparison, submit_trial

    options = with_batch_mode(options, batch=batch)
    path = csv_of_folder(session, csv, options) if csv.is_dir() else csv
    upload = Upload(
        path,
        to,
        options,
        wait,
        every,
        allow_outside,
        replace_images=replace_images,
        assume_yes=yes,
    )
    if job is not None and trial is not None:
        raise UsageMistake("--try is for a whole CSV: leave it out with --job.")
    if compare is not None:
        if trial is None:
            raise UsageMistake("--compare needs --try with the number of rows to edit.")
        submit_comparison(session, upload, count=trial, models=compare)
        return
    if job is not None:
        progress = submit_corrections(session, upload, job)
    elif trial is not None:
        progress = submit_trial(session, upload, count=trial)
    else:
        progress = submit(session, upload)
    if progress is not None:
        exit_as(progress)


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

    Exits with 1 if the job failed or was stopped; with --watch also with 3 if rows failed.
    """
    from darkroom_cli import status

    if watch:
        status.exit_as(status.watch(session, job, every=every))
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
    csv: CsvOrFolder,
    *,
    to: Annotated[
        str, typer.Option(help="Folder in the input bucket, as for submit.", metavar="PREFIX")
    ] = DEFAULT_FOLDER,
    batch: Batch = False,
    call_seconds: Annotated[
        float | None,
        typer.Option(
            min=0.1, help="Assumed duration of a call: 20; 480 in flex.", metavar="SECONDS"
        ),
    ] = None,
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
    """Estimate a job's cost and duration, live and in batches.

    Starts nothing and calls no provider. Uses the models and limits of the stack's endpoints, and
    leaves out rows that an earlier upload of the same CSV has done.
    """
    from darkroom_cli.options import with_batch_mode
    from darkroom_cli.quote import quote

    quote(
        session,
        csv,
        with_batch_mode(options, batch=batch),
        to=to,
        call_seconds=call_seconds,
        endpoints=endpoints_file,
        workers=workers,
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be returned, but return nothing.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Return the rows of all jobs without asking.")
    ] = False,
) -> None:
    """Return dead rows to the rows queue.

    Without JOB, those of all jobs: it asks before that. An interrupted redrive loses nothing: run
    it again.
    """
    from darkroom_cli.redrive import redrive

    redrive(session, job, reason, dry_run=dry_run, assume_yes=yes)


@app.command("open")
@with_session
def open_gallery(
    session: Session,
    job: Job,
    folder: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIR", file_okay=False, help="Download to this folder."),
    ] = None,
) -> None:
    """Download a job's gallery and open it in the browser.

    Downloads only what is new since the last time. With --json nothing is opened.
    """
    from darkroom_cli.download import open_gallery

    open_gallery(session, job, folder, session.wiring.launch)


@app.command("compare")
@with_session
def compare_jobs(
    session: Session,
    jobs: Annotated[list[str], typer.Argument(metavar="JOB JOB…", help="Jobs of the same CSV.")],
    folder: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIR", file_okay=False, help="Download to this folder."),
    ] = None,
) -> None:
    """Show the rows of several jobs side by side.

    Downloads them, writes one page with images, price, time and outcome of each row, and opens it.
    """
    from darkroom_cli.compare import compare

    compare(session, jobs, folder)


@app.command("lost-events")
@with_session
def lost_events(
    session: Session,
    replay: Annotated[
        bool, typer.Option("--replay", help="Start them again, and remove them from the queue.")
    ] = False,
) -> None:
    """List uploads and reports that failed three times.

    Replaying all of them clears the alarm lost-events.
    """
    from darkroom_cli.lost_events import lost_events

    lost_events(session, replay=replay)


@app.command()
@with_session
def doctor(
    session: Session,
    row: Annotated[
        bool,
        typer.Option("--row", help="Also edit one row without images. It costs one image."),
    ] = False,
) -> None:
    """Check a deployed stack: functions, secret, queue, tables.

    Exits with 1 if a check fails. Changes and spends nothing without --row.
    """
    from darkroom_cli.doctor import doctor

    doctor(session, row=row)


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


@endpoints.command("check")
@with_session
def endpoints_check(
    session: Session,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="Endpoints to check; without it the stack's."),
    ] = None,
) -> None:
    """Ask the providers which keys and models they accept.

    One request per key, for its list of models: nothing is charged. Exits with 1 if a key is
    rejected or does not have its endpoint's model.
    """
    from darkroom_cli.endpoints_check import check

    if not check(session, file):
        raise typer.Exit(1)


@endpoints.command("show")
@with_session
def endpoints_show(session: Session) -> None:
    """Show endpoints, limits and state.

    The state includes the circuit breaker, calls in flight and keys on cooldown, with the reason.
    """
    from darkroom_cli.endpoints import show

    show(session)


@endpoints.command("reset")
@with_session
def endpoints_reset(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the endpoint.")],
) -> None:
    """Put an endpoint back into service at once.

    Closes its circuit breaker and ends its pause and the cooldowns of its keys. Its limits still
    count the calls that were made.
    """
    from darkroom_cli.endpoints import reset

    reset(session, name)


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


@local.command("status")
@with_session
def local_status(session: Session) -> None:
    """Show whether the stack on this machine runs.

    Exits with 1 if it does not.
    """
    from darkroom_cli.local import status

    status(session)


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
