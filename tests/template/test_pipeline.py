"""What is deployed is what was tested, staging comes first, and a skipped test is no pass."""

from typing import Any

import pytest
import yaml

from darkroom_local.processes import ROOT
from tests.sam_local import __main__ as sam_local
from tests.sam_local import engine
from tests.sam_local.engine import CannotRunHere


@pytest.fixture(scope="module")
def jobs() -> Any:
    (workflow,) = (ROOT / ".github" / "workflows").glob("*.yml")
    return yaml.safe_load(workflow.read_text())["jobs"]


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def uses(job: dict[str, Any], action: str) -> list[dict[str, Any]]:
    return [step["with"] for step in job["steps"] if action in step.get("uses", "")]


def test_one_build_is_tested_and_then_promoted(jobs: dict[str, Any]) -> None:
    (uploaded,) = uses(jobs["build"], "upload-artifact")
    for name in ("test", "sam-local", "staging", "production"):
        (downloaded,) = uses(jobs[name], "download-artifact")
        assert (downloaded["name"], downloaded["path"]) == (uploaded["name"], uploaded["path"])
    builders = [name for name, job in jobs.items() if "make build" in str(commands(job))]
    assert builders == ["build"]
    for name in ("staging", "production"):
        (deploy,) = [c for c in commands(jobs[name]) if "make deploy" in c]
        assert "--no-build" in deploy


def test_production_follows_staging_and_its_smoke_test(jobs: dict[str, Any]) -> None:
    assert set(jobs["staging"]["needs"]) == {"check", "test", "sam-local"}
    assert jobs["production"]["needs"] == ["staging"]
    assert "--config-env staging" in commands(jobs["staging"])[0]
    assert "darkroom doctor --stack darkroom-staging --row" in commands(jobs["staging"])[1]
    assert "darkroom doctor" in commands(jobs["production"])[1]


def test_only_deployments_get_a_token(jobs: dict[str, Any]) -> None:
    with_token = {name for name, job in jobs.items() if "id-token" in job.get("permissions", {})}
    assert with_token == {"staging", "production"}


def test_every_action_is_pinned_to_a_commit(jobs: dict[str, Any]) -> None:
    actions = {s["uses"] for job in jobs.values() for s in job["steps"] if "uses" in s}
    assert all(len(action.partition("@")[2]) == 40 for action in actions)


@pytest.mark.parametrize(("arguments", "status"), [([], 0), (["--required"], 1)])
def test_containers_that_cannot_run_fail_a_pipeline_that_requires_them(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], status: int
) -> None:
    def cannot_run() -> None:
        raise CannotRunHere("this machine has no kernel")

    monkeypatch.setattr(engine, "running", cannot_run)
    assert sam_local.main(arguments) == status


def test_a_skip_of_sam_local_does_not_pass_the_pipeline(jobs: dict[str, Any]) -> None:
    assert commands(jobs["sam-local"]) == ["make test-sam-local ARGS=--required"]
