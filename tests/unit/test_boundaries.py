"""Imports: the domain loads no SDK and needs no environment, and no modules import each other."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

import darkroom
import darkroom_cli

ROOT = Path(darkroom.__file__).parent
ADAPTERS = {"aws", "providers", "bootstrap.py", "fetcher.py"}
SDKS = {"boto3", "openai", "google.genai", "httpx", "httpx2", "PIL.Image"}
# Loaded by the child process of images/process.py only.
IMAGE_PROCESS = "darkroom.images.pillow_codec"
HEAVY = {"openai", "google.genai", "PIL.Image", "boto3"}


def modules(package: Path) -> dict[str, Path]:
    return {
        ".".join(path.relative_to(package.parent).with_suffix("").parts): path
        for path in sorted(package.rglob("*.py"))
        if path.name != "__init__.py"
    }


DOMAIN = [
    name
    for name, path in modules(ROOT).items()
    if path.relative_to(ROOT).parts[0] not in ADAPTERS and name != IMAGE_PROCESS
]


def loaded_by(*names: str) -> set[str]:
    """The modules loaded by an import of these in a new process without environment variables."""
    program = f"import sys, {', '.join(names)}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, env={}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_domain_loads_no_sdk_and_needs_no_environment() -> None:
    assert SDKS & loaded_by(*DOMAIN) == set()


@pytest.mark.parametrize("provider", ["registry", "gemini", "openai"])
def test_an_adapter_loads_its_sdk_only_with_a_call(provider: str) -> None:
    """A cold start pays for an SDK only when a call needs it."""
    assert HEAVY & loaded_by(f"darkroom.providers.{provider}") == set()


def imported_by(path: Path) -> Iterator[str]:
    """What a module imports anywhere, also in functions and for type checking only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", [darkroom, darkroom_cli], ids=lambda package: package.__name__)
def test_no_modules_import_each_other(package: ModuleType) -> None:
    found = modules(Path(package.__path__[0]))
    graph = {name: found.keys() & set(imported_by(path)) for name, path in found.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_the_editor_loads_no_utilities_of_powertools_but_its_logger_and_metrics() -> None:
    """Its batch utility and data classes cost a seventh of the handler's import."""
    path = ROOT.parents[2] / "functions" / "editor"
    program = f"import sys; sys.path.insert(0, {str(path)!r}); import app; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    loaded = set(done.stdout.split())
    assert "darkroom.bootstrap" in loaded
    assert not {f"aws_lambda_powertools.utilities.{n}" for n in ("batch", "data_classes")} & loaded
