"""The resume decision: what an upload does with a row of an earlier one, in every combination."""

from dataclasses import replace

import pytest

from darkroom.errors import Reason
from darkroom.jobs import JobOptions
from darkroom.rows import RowRecord, RowResult, RowState
from darkroom.splitter import ResumeDecision, resume_decision
from tests.fakes.ledger import running

OLD, CHANGED = "old-fingerprint", "changed-fingerprint"


def record(state: RowState, reason: Reason | None = None, run: str = "run-0") -> RowRecord:
    result = RowResult(state, reason) if state.terminal else None
    return RowRecord("000000", 0, state, OLD, run, result=result)


def decide(known: RowRecord | None, fingerprint: str = OLD, /, **options: bool) -> ResumeDecision:
    return resume_decision(known, fingerprint, running(options=JobOptions.model_validate(options)))


@pytest.mark.parametrize("options", [{}, {"resume": False}, {"retry_failed": True}])
def test_a_new_row_is_queued(options: dict[str, bool]) -> None:
    assert decide(None, **options) is ResumeDecision.QUEUED


def test_a_success_is_resumed_unless_it_changed_or_resume_is_off() -> None:
    done = record(RowState.SUCCEEDED)
    assert decide(done) is ResumeDecision.RESUMED
    assert decide(done, retry_failed=True) is ResumeDecision.RESUMED
    assert decide(done, CHANGED) is ResumeDecision.QUEUED
    assert decide(done, resume=False) is ResumeDecision.QUEUED


@pytest.mark.parametrize("state", [RowState.SUCCEEDED, RowState.FAILED, RowState.DEAD])
def test_a_row_settled_for_an_earlier_upload_during_the_split_is_queued(
    state: RowState,
) -> None:
    run = running()
    before = replace(record(state, Reason.REFUSED), updated_at=run.started_at - 1)
    since = replace(before, updated_at=run.started_at + 1)
    assert resume_decision(before, OLD, run) is not ResumeDecision.QUEUED
    assert resume_decision(since, OLD, run) is ResumeDecision.QUEUED


@pytest.mark.parametrize("state", [RowState.FAILED, RowState.DEAD])
def test_a_failure_is_kept_unless_it_changed_or_an_option_retries_it(state: RowState) -> None:
    failed = record(state, Reason.REFUSED)
    assert decide(failed) is ResumeDecision.KEPT_FAILED
    assert decide(failed, retry_failed=True) is ResumeDecision.QUEUED
    assert decide(failed, CHANGED) is ResumeDecision.QUEUED
    assert decide(failed, resume=False) is ResumeDecision.QUEUED


@pytest.mark.parametrize("reason", list(Reason))
def test_only_rows_failed_for_budget_or_stop_are_retried_by_any_upload(reason: Reason) -> None:
    retried = reason in (Reason.BUDGET, Reason.STOPPED)
    expected = ResumeDecision.QUEUED if retried else ResumeDecision.KEPT_FAILED
    assert decide(record(RowState.FAILED, reason)) is expected


@pytest.mark.parametrize("state", [RowState.CLAIMED, RowState.SENT])
def test_an_unsettled_row_of_an_earlier_upload_is_queued(state: RowState) -> None:
    assert decide(record(state)) is ResumeDecision.QUEUED


@pytest.mark.parametrize("state", list(RowState))
@pytest.mark.parametrize("options", [{}, {"resume": False}, {"retry_failed": True}])
def test_a_row_settled_in_this_run_is_not_queued_again(
    state: RowState, options: dict[str, bool]
) -> None:
    expected = ResumeDecision.QUEUED_BEFORE if state.terminal else ResumeDecision.QUEUED
    assert decide(record(state, run="run-1"), **options) is expected


def test_a_row_added_by_a_redrive_is_not_queued_again() -> None:
    redriven = replace(record(RowState.CLAIMED, run="run-1"), redriven=True)
    assert decide(redriven, retry_failed=True) is ResumeDecision.KEPT_FAILED
