"""Fits events/ to a deployed stack: `python -m darkroom_local.sam_local.prepare --stack darkroom`.

The files in events/ hold the names of an example. This writes them with the names of the stack that
the AWS variables of the shell lead to, and the environment of its functions, to .local/sam-local/.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import boto3

from darkroom.aws.events import uploads_in
from darkroom_local.processes import ROOT
from darkroom_local.sam_local.environment import ENDPOINT, Environments, of_stack

EVENTS = ROOT / "events"
VARIABLES = "env.json"
UPLOAD = "splitter-s3-put.json"
PREPARED = ROOT / ".local" / "sam-local"


def prepared(deployed: Environments, events: Path = EVENTS) -> dict[str, str]:
    """Contents by file name: each event with the stack's names and run, and its env.json."""
    example: Environments = json.loads((events / VARIABLES).read_text())
    names = {
        value: deployed[function][variable]
        for function, variables in example.items()
        for variable, value in variables.items()
        if value and variable in deployed.get(function, {}) and variable != "STACK_NAME"
    }
    upload = (events / UPLOAD).read_text()
    runs = {_run(upload): _run(_renamed(upload, names))}
    files = {
        path.name: _renamed(path.read_text(), names | runs)
        for path in sorted(events.glob("*.json"))
        if path.name != VARIABLES
    }
    return files | {VARIABLES: json.dumps(deployed, indent=2) + "\n"}


def write(files: dict[str, str], folder: Path = PREPARED) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def _renamed(text: str, names: dict[str, str]) -> str:
    for old in sorted(names, key=len, reverse=True):
        text = text.replace(old, names[old])
    return text


def _run(event: str) -> str:
    """The run that this upload starts: it depends on the bucket's name."""
    (upload,) = uploads_in(json.loads(event))
    return upload.run


def main() -> int:
    parser = argparse.ArgumentParser(description="Fit events/ to a deployed stack.")
    parser.add_argument("--stack", default="darkroom")
    chosen = parser.parse_args()
    deployed = of_stack(boto3.Session(), os.environ.get(ENDPOINT) or None, chosen.stack)
    sys.stdout.write(f"{write(prepared(deployed))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
