"""The options and arguments that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_STACK = "darkroom"

StackOption = Annotated[
    str,
    typer.Option("--stack", envvar="DARKROOM_STACK", help="Name of the stack."),
]
LocalOption = Annotated[
    bool,
    typer.Option(
        "--local",
        envvar="DARKROOM_LOCAL",
        help="The stack on this machine (`darkroom local up`).",
    ),
]
EndpointOption = Annotated[
    str | None,
    typer.Option(
        "--endpoint-url",
        envvar="AWS_ENDPOINT_URL",
        help="Another AWS API than Amazon's.",
        metavar="URL",
    ),
]
RegionOption = Annotated[
    str | None,
    typer.Option(
        "--region",
        envvar=["AWS_REGION", "AWS_DEFAULT_REGION"],
        help="AWS region.",
        metavar="NAME",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]

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
Background = Annotated[
    str | None,
    _job_option("--background", "For rows without one: transparent, opaque, auto.", "NAME"),
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
