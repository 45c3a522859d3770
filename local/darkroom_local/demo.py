"""`make demo`: the main job on real photos, on this machine, with the commands a user types."""

import csv
import functools
import http.server
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from darkroom_local import simulation, stack
from darkroom_local.processes import LOOPBACK, ROOT, LocalStackError
from darkroom_local.providers.config import Config, Fault, FaultKind, SimulatedEndpoint, When

EXAMPLES = ROOT / "examples"
WORK = ROOT / ".local" / "demo"
JOB = "demo/photos"
PHOTO_HOST = "https://photos.example.com"  # in the CSV; the demo plays that host itself
# Gemini is "down" for one row and refuses another, so that the demo shows what happens then.
SCRIPT = Config(
    endpoints={
        "gemini-main": SimulatedEndpoint(
            latency=simulation.LATENCY,
            faults=(
                Fault(kind=FaultKind.OVERLOADED, when=When(prompt_contains="sunrise")),
                Fault(kind=FaultKind.REFUSED, when=When(prompt_contains="brand's logo")),
            ),
        ),
        "openai-main": SimulatedEndpoint(latency=simulation.LATENCY),
    }
)
QUICK = {"gemini-main": {"max_retries": 1, "retry_delay_seconds": 0.5}}
KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_GENAI_API_KEY", "OPENAI_API_KEY")
STYLES = {"succeeded": "green", "failed": "yellow", "dead": "red", "skipped": "dim"}


def main() -> int:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    real = os.environ.get("PROVIDERS", "simulated") == "real"
    if real and not any(os.environ.get(name, "").strip() for name in KEYS):
        console.print(f"PROVIDERS=real needs a key in {' or '.join(KEYS)}.", style="red")
        return 2
    began = time.monotonic()

    def say(step: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:5.1f} s[/]  {step}")

    try:
        with (
            stack.running(config=SCRIPT, overrides=QUICK, simulate=not real, say=say) as info,
            _photo_host(EXAMPLES / "photos") as host,
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
    _darkroom(console, info, "submit", str(table), "--to", "demo", "--wait")
    results = WORK / "results"
    _darkroom(console, info, "download", JOB, str(results))
    manifest = _read(results / "manifest.csv")
    console.print(_summary(manifest))
    wrong = missing_rows(_read(table), manifest)
    if wrong:
        console.print(f"Rows that are not in the manifest exactly once: {wrong}", style="red")
        return 1
    console.print(f"\nGallery: [bold]{results / 'report.html'}[/]")
    return 0


def _prepare(host: str) -> Path:
    """A working copy of the examples, in which photos.example.com is the demo's own web server."""
    shutil.rmtree(WORK, ignore_errors=True)
    shutil.copytree(EXAMPLES / "photos", WORK / "photos")
    table = WORK / "photos.csv"
    table.write_text((EXAMPLES / "photos.csv").read_text().replace(PHOTO_HOST, host))
    return table


def _darkroom(console: Console, info: stack.StackInfo, *arguments: str) -> None:
    """Run the command as a user would, in front of the user."""
    shown = [os.path.relpath(a, ROOT) if a.startswith(str(ROOT)) else a for a in arguments]
    console.print(f"\n[bold cyan]$ darkroom {shlex.join(shown)}[/]")
    elsewhere = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "DARKROOM_"))}
    subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "darkroom_cli.main", *arguments],
        env=elsewhere | info.environment(),
        check=True,
    )


def missing_rows(
    rows: Sequence[Mapping[str, str]], manifest: Sequence[Mapping[str, str]]
) -> list[int]:
    """Rows of the CSV, counted from 0, that do not stand in the manifest exactly once."""
    settled = [int(line["row"]) for line in manifest if line["status"] in STYLES]
    return [row for row in range(len(rows)) if settled.count(row) != 1]


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def _summary(manifest: Sequence[Mapping[str, str]]) -> Table:
    table = Table(title=f"{len(manifest)} rows", title_justify="left", title_style="bold")
    table.add_column("row", justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("by", no_wrap=True)
    table.add_column("USD", justify="right", no_wrap=True)
    table.add_column("picture, or why there is none", overflow="fold")
    for line in manifest:
        status = line["status"]
        by = line["provider"] + (" (fallback)" if line["fallback"] == "true" else "")
        why = Text(line["output"].removeprefix(f"{JOB}/") or f"{line['reason']}: {line['detail']}")
        style = STYLES.get(status, "")
        table.add_row(line["row"], Text(status, style), by, f"{_usd(line):.4f}", why)
    table.caption = f"${sum(map(_usd, manifest)):.4f} in all"
    return table


def _usd(line: Mapping[str, str]) -> float:
    return float(line["cost_usd"] or 0)


@contextmanager
def _photo_host(folder: Path) -> Iterator[str]:
    """A web server for the rows that name their photo by URL."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer((LOOPBACK, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://{LOOPBACK}:{server.server_address[1]}"
        server.shutdown()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
