"""`darkroom local`: the whole stack on this machine, from the checkout."""

import shlex

import typer

from darkroom_cli.aws import running_local_stack
from darkroom_cli.session import Session
from darkroom_local import ministack, stack


def up(session: Session) -> None:
    with session.spinner("Starting the stack") as show:
        info = stack.up(stack=session.target.stack, progress=show)
    session.print_result(
        f"Stack {info.stack} runs at {info.url}. Add --local to use it, or for this shell: "
        'export DARKROOM_LOCAL=1. For the aws command: eval "$(darkroom local env)".',
        {
            "stack": info.stack,
            "endpoint_url": info.url,
            "providers_url": info.providers_url,
            "region": ministack.REGION,
            "work": info.work,
            "outputs": dict(info.outputs),
        },
    )


def down(session: Session) -> None:
    stopped = stack.down()
    text = "Stopped the stack and removed its state." if stopped else "No stack was running."
    session.print_result(text, {"stopped": stopped})


def status(session: Session) -> None:
    """Exits with 1 if no stack runs."""
    info = stack.current()
    if info is None:
        session.print_result("No stack runs: `darkroom local up` starts one.", {"running": False})
        raise typer.Exit(1)
    fields = {
        "stack": info.stack,
        "endpoint_url": info.url,
        "providers_url": info.providers_url,
        "work": info.work,
    }
    if session.json:
        session.print_json({"running": True, **fields, "outputs": dict(info.outputs)})
        return
    session.print_fields(
        (name.replace("_", " "), value or "real") for name, value in fields.items()
    )


def env(session: Session) -> None:
    variables = running_local_stack().environment()
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    session.print_result("\n".join(lines), variables)
