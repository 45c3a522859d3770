"""The domain stands on its own: an import of it brings no SDK and needs no environment."""

import subprocess
import sys
from pathlib import Path

import darkroom

ROOT = Path(darkroom.__file__).parent
ADAPTERS = {"aws", "providers", "bootstrap.py", "fetcher.py"}
DOMAIN = sorted(
    "darkroom." + path.with_suffix("").as_posix().replace("/", ".")
    for path in (path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
    if path.name != "__init__.py" and path.parts[0] not in ADAPTERS
)
SDKS = {"boto3", "openai", "google.genai", "httpx", "httpx2", "PIL.Image"}


def test_importing_the_whole_domain_loads_no_sdk_and_reads_no_environment() -> None:
    program = f"import sys, {', '.join(DOMAIN)}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, env={}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert SDKS & set(done.stdout.split()) == set()
