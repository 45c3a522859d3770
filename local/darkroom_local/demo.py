"""`make demo`: the main job on real photos, on this machine, with the commands a user types."""

import csv
import functools
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Container, Mapping, Sequence
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from darkroom.formatting import plural
from darkroom.providers.registry import PROVIDERS
from darkroom.rows import RowState
from darkroom_cli.status import ROWS_FAILED_EXIT_CODE
from darkroom_local import stack
from darkroom_local.processes import LOOPBACK, ROOT, LocalStackError, serving
from darkroom_local.providers.config import Config, Fault, FaultKind, SimulatedEndpoint, When

EXAMPLES = ROOT / "examples"
WORK = ROOT / ".local" / "demo"
JOB = "demo/photos"
PHOTO_HOST = "https://photos.example.com"  # in the CSV; replaced by a web server of the demo
# Gemini is overloaded for one row and refuses another, so that the demo shows what happens then.
CONFIG = Config(
    endpoints={
        "gemini-main": SimulatedEndpoint(
            latency=stack.LATENCY,
            faults=(
                Fault(kind=FaultKind.OVERLOADED, when=When(prompt_contains="sunrise")),
                Fault(kind=FaultKind.REFUSED, when=When(prompt_contains="brand's logo")),
            ),
        ),
        "openai-main": SimulatedEndpoint(latency=stack.LATENCY),
    }
)
OVERRIDES = {"gemini-main": {"max_retries": 1, "retry_delay_seconds": 0.5}}
KEY_VARIABLES = [name for entry in PROVIDERS.values() for name in entry.key_variables]
ENDED = frozenset(state for state in RowState if state.terminal)
STYLES = {"succeeded": "green", "failed": "yellow", "dead": "red", "skipped": "dim"}


def main() -> int:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    real = os.environ.get("PROVIDERS", "simulated") == "real"
    if real and not any(os.environ.get(name, "").strip() for name in KEY_VARIABLES):
        console.print(f"PROVIDERS=real needs a key in {' or '.join(KEY_VARIABLES)}.", style="red")
        return 2
    started = time.monotonic()

    def progress(step: str) -> None:
        console.print(f"[dim]{time.monotonic() - started:5.1f} s[/]  {step}")

    try:
        with (
            stack.running(
                config=CONFIG, overrides=OVERRIDES, simulate=not real, progress=progress
            ) as info,
            serving(_photo_server()) as host,
        ):
            return _main_job(console, info, host, real=real)
    except (LocalStackError, subprocess.CalledProcessError) as error:
        console.print(f"The demo could not be finished: {error}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        return 130


def _main_job(console: Console, info: stack.StackInfo, host: str, *, real: bool) -> int:
    table = _prepare(host)
    if real:
        _darkroom(console, info, "endpoints", "push", "--from-env")
        _darkroom(console, info, "quote", str(table))
    _darkroom(
        *(console, info, "submit", str(table), "--to", "demo", "--wait"),
        expected=(0, ROWS_FAILED_EXIT_CODE),
    )
    results = WORK / "results"
    _darkroom(console, info, "download", JOB, str(results))
    manifest = _read(results / "manifest.csv")
    console.print(_summary(manifest))
    if wrong := _missing_rows(_read(table), manifest):
        console.print(f"Rows that are not in the manifest exactly once: {wrong}", style="red")
        return 1
    failed = sum(line["status"] != RowState.SUCCEEDED for line in manifest)
    if not real:
        console.print(
            f"\nThe providers were simulated: nothing was charged. {plural(failed, 'row')} failed "
            "on purpose, to show how a refusal and bad input look."
        )
    console.print(f"\nGallery: [bold]{results / 'report.html'}[/]")
    console.print(
        "Next, with your own photos and keys: [bold].venv/bin/darkroom local up[/], then "
        "[bold].venv/bin/darkroom --help[/]; docs/cli.md describes all of it."
    )
    return 0


def _prepare(host: str) -> Path:
    """Copy the examples, with the demo's own web server in place of photos.example.com."""
    shutil.rmtree(WORK, ignore_errors=True)
    shutil.copytree(EXAMPLES / "photos", WORK / "photos")
    table = WORK / "photos.csv"
    table.write_text((EXAMPLES / "photos.csv").read_text().replace(PHOTO_HOST, host))
    return table


def _darkroom(
    console: Console,
    info: stack.StackInfo,
    *arguments: str,
    expected: Container[int] = (0,),
) -> None:
    """Run the darkroom command as a user would, and print it first."""
    shown = [os.path.relpath(a, ROOT) if a.startswith(str(ROOT)) else a for a in arguments]
    console.print(f"\n[bold cyan]$ darkroom {shlex.join(shown)}[/]")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "DARKROOM_"))}
    ended = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "darkroom_cli.main", *arguments],
        env=inherited | info.environment(),
        check=False,
    )
    if ended.returncode not in expected:
        ended.check_returncode()


def _missing_rows(
    rows: Sequence[Mapping[str, str]], manifest: Sequence[Mapping[str, str]]
) -> list[int]:
    """Numbers (from 0) of the CSV's rows that are not in the manifest exactly once."""
    settled = [int(line["row"]) for line in manifest if line["status"] in ENDED]
    return [row for row in range(len(rows)) if settled.count(row) != 1]


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def _summary(manifest: Sequence[Mapping[str, str]]) -> Table:
    table = Table(title=plural(len(manifest), "row"), title_justify="left", title_style="bold")
    table.add_column("row", justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("by", no_wrap=True)
    table.add_column("USD", justify="right", no_wrap=True)
    table.add_column("image, or reason", overflow="fold")
    for line in manifest:
        status = line["status"]
        by = line["provider"] + (" (fallback)" if line["fallback"] == "true" else "")
        text = line["output"].removeprefix(f"{JOB}/") or f"{line['reason']}: {line['detail']}"
        styled = Text(status, STYLES.get(status, ""))
        table.add_row(line["row"], styled, by, f"{_usd(line):.4f}", Text(text))
    table.caption = f"${sum(map(_usd, manifest)):.4f} in total"
    return table


def _usd(line: Mapping[str, str]) -> float:
    return float(line["cost_usd"] or 0)


def _photo_server() -> ThreadingHTTPServer:
    """A web server for the rows that name their photo by URL."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(EXAMPLES / "photos"))
    return ThreadingHTTPServer((LOOPBACK, 0), handler)


if __name__ == "__main__":
    sys.exit(main())
