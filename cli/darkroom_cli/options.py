"""The options and arguments that several subcommands share, and the job options."""

import inspect
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from darkroom_cli.error_messages import UsageMistake

if TYPE_CHECKING:
    from darkroom.csv_input.fields import Field

DEFAULT_STACK = "darkroom"
DEFAULT_FOLDER = "jobs"  # in the input bucket
JOB_OPTIONS = "darkroom_cli.job_options"  # typer's context keeps their values under this name

CsvOrFolder = Annotated[
    Path,
    typer.Argument(
        metavar="CSV|FOLDER",
        exists=True,
        readable=True,
        help="A .csv or .csv.gz file, or a folder of images.",
    ),
]
Job = Annotated[
    str,
    typer.Argument(
        metavar="JOB", help="Named after its CSV: jobs/products.csv is the job jobs/products."
    ),
]
Batch = Annotated[
    bool,
    typer.Option("--batch", help="At half price, within 24 hours: the same as --mode batch."),
]
Every = Annotated[
    float,
    typer.Option(min=0.2, help="Polling interval in seconds.", metavar="SECONDS"),
]


@dataclass(frozen=True, slots=True)
class Target:
    """Which stack a command uses. Its fields are options of every subcommand."""

    stack: Annotated[str, typer.Option(envvar="DARKROOM_STACK", help="Name of the stack.")] = (
        DEFAULT_STACK
    )
    local: Annotated[
        bool,
        typer.Option(
            "--local",
            envvar="DARKROOM_LOCAL",
            help="Use the stack that `darkroom local up` started.",
        ),
    ] = False
    endpoint_url: Annotated[
        str | None,
        typer.Option(
            envvar="AWS_ENDPOINT_URL", help="URL of an AWS API other than Amazon's.", metavar="URL"
        ),
    ] = None
    region: Annotated[
        str | None,
        typer.Option(
            envvar=["AWS_REGION", "AWS_DEFAULT_REGION"], help="AWS region.", metavar="NAME"
        ),
    ] = None


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


class SubmitCommand(TyperCommand):
    """A command with the job options of the field table beside its own parameters.

    Their values are passed as `**options` of a function under `with_session`. The table is read
    when the command is used, so that `darkroom --help` does not import it.
    """

    def includes(self, _field: "Field") -> bool:
        return True

    @cached_property
    def _job_options(self) -> list[Any]:
        from darkroom.csv_input.fields import OPTION_FIELDS  # noqa: PLC0415 - imports pydantic

        parameters = [_job_option(f) for f in OPTION_FIELDS.values() if self.includes(f)]

        def command() -> None: ...

        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by inspect.signature
        converter = typer.Typer(add_completion=False)
        converter.command()(command)
        return list(typer.main.get_command(converter).params)

    def get_params(self, ctx: Any) -> list[Any]:
        own = super().get_params(ctx)
        position = next(i for i, parameter in enumerate(own) if parameter.name == "as_json")
        return [*own[:position], *self._job_options, *own[position:]]

    def invoke(self, ctx: Any) -> Any:
        values = {p.name: ctx.params.pop(p.name) for p in self._job_options}
        ctx.meta[JOB_OPTIONS] = {name: v for name, v in values.items() if v is not None}
        return super().invoke(ctx)


class QuoteCommand(SubmitCommand):
    """Like SubmitCommand, with only the options that a quote depends on."""

    def includes(self, field: "Field") -> bool:
        return field.in_quote


def with_batch_mode(options: dict[str, object], *, batch: bool) -> dict[str, object]:
    """The job options with the mode that --batch stands for. Raises UsageMistake."""
    mode = options.get("mode", "batch")
    if batch and mode != "batch":
        raise UsageMistake(f"--batch and --mode {mode} contradict each other: leave one out.")
    return {**options, "mode": mode} if batch else options


def _job_option(field: "Field") -> inspect.Parameter:
    from darkroom.jobs import JobOptions  # noqa: PLC0415 - imports pydantic

    flag = f"--{field.option_name}"
    if field.is_switch and getattr(JobOptions(), field.name):  # on by default: needs an off switch
        flag = f"{flag}/--no-{field.option_name}"
    option = typer.Option(flag, help=field.help, metavar=field.metavar or None, show_default=False)
    value = bool | None if field.is_switch else str | None
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[value, option],
    )
