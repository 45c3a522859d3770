"""One `sam local invoke`: an event in, the function's answer and log out."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from darkroom_local.processes import ROOT, LocalStackError
from darkroom_local.sam_local.engine import Engine

SAM = ROOT / ".venv-sam" / "bin" / "sam"
SECONDS = 180


@dataclass(frozen=True, slots=True)
class Answer:
    """What the function returned (None: nothing), and all that it and SAM CLI logged."""

    value: Any
    log: str


@dataclass(frozen=True, slots=True)
class SamLocal:
    """Invokes functions of a built template in containers of `engine`."""

    engine: Engine
    template: Path
    environment: Mapping[str, str]  # of SAM CLI: credentials, region
    image: str | None = None  # in place of AWS's own image

    def command(self, function: str, event: Path, variables: Path) -> list[str]:
        chosen = ["--skip-pull-image", "--invoke-image", self.image] if self.image else []
        files = [
            "--template",
            str(self.template),
            "--event",
            str(event),
            "--env-vars",
            str(variables),
        ]
        return [str(SAM), "local", "invoke", function, *files, *chosen]

    def invoke(self, function: str, event: Path, variables: Path) -> Answer:
        """Raises LocalStackError when SAM CLI fails or prints no JSON."""
        done = subprocess.run(  # noqa: S603 - SAM CLI
            self.command(function, event, variables),
            env=self.engine.environment() | dict(self.environment) | {"SAM_CLI_TELEMETRY": "0"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise LocalStackError(f"sam local invoke {function} failed: {done.stderr[-2000:]}")
        # The log of the function comes on stderr, its answer is the last line of stdout.
        lines = done.stdout.strip().splitlines() or ["null"]
        try:
            return Answer(json.loads(lines[-1]), done.stderr)
        except ValueError as error:
            raise LocalStackError(
                f"sam local invoke {function} printed {lines[-1][:200]}"
            ) from error
