"""What an upload does with a row it knows: every combination has its answer."""

from dataclasses import replace

import pytest

from darkroom.errors import Reason
from darkroom.jobs import JobOptions
from darkroom.rows import RowRecord, RowResult, RowState
from darkroom.splitter import ResumeDecision, resume_decision
from tests.fakes.ledger import running

OLD, CHANGED = "asks-the-same", "asks-otherwise"


def record(state: RowState, reason: Reason | None = None, run: str = "run-0") -> RowRecord:
    result = RowResult(state, reason) if state.terminal else None
    return RowRecord("000000", 0, state, OLD, run, result=result)


def fate(known: RowRecord | None, fingerprint: str = OLD, /, **options: bool) -> ResumeDecision:
    return resume_decision(known, fingerprint, running(options=JobOptions.model_validate(options)))


@pytest.mark.parametrize("options", [{}, {"resume": False}, {"retry_failed": True}])
def test_a_row_never_seen_is_queued(options: dict[str, bool]) -> None:
    assert fate(None, **options) is ResumeDecision.QUEUED


def test_a_success_is_resumed_unless_it_changed_or_resume_is_off() -> None:
    done = record(RowState.SUCCEEDED)
    assert fate(done) is ResumeDecision.RESUMED
    assert fate(done, retry_failed=True) is ResumeDecision.RESUMED
    assert fate(done, CHANGED) is ResumeDecision.QUEUED
    assert fate(done, resume=False) is ResumeDecision.QUEUED


@pytest.mark.parametrize("state", [RowState.SUCCEEDED, RowState.FAILED, RowState.DEAD])
def test_a_row_settled_for_an_earlier_upload_since_this_one_began_stays_queued(
    state: RowState,
) -> None:
    run = running()
    before = replace(record(state, Reason.REFUSED), updated_at=run.started_at - 1)
    since = replace(before, updated_at=run.started_at + 1)
    assert resume_decision(before, OLD, run) is not ResumeDecision.QUEUED
    assert resume_decision(since, OLD, run) is ResumeDecision.QUEUED


@pytest.mark.parametrize("state", [RowState.FAILED, RowState.DEAD])
def test_a_failure_is_kept_unless_asked_for_changed_or_redone(state: RowState) -> None:
    failed = record(state, Reason.REFUSED)
    assert fate(failed) is ResumeDecision.KEPT_FAILED
    assert fate(failed, retry_failed=True) is ResumeDecision.QUEUED
    assert fate(failed, CHANGED) is ResumeDecision.QUEUED
    assert fate(failed, resume=False) is ResumeDecision.QUEUED


@pytest.mark.parametrize("reason", list(Reason))
def test_only_a_budget_and_a_stop_are_lifted_by_any_new_upload(reason: Reason) -> None:
    lifted = reason in (Reason.BUDGET, Reason.STOPPED)
    expected = ResumeDecision.QUEUED if lifted else ResumeDecision.KEPT_FAILED
    assert fate(record(RowState.FAILED, reason)) is expected


@pytest.mark.parametrize("state", [RowState.CLAIMED, RowState.SENT])
def test_a_row_still_in_work_for_an_earlier_upload_is_queued(state: RowState) -> None:
    assert fate(record(state)) is ResumeDecision.QUEUED


@pytest.mark.parametrize("state", list(RowState))
@pytest.mark.parametrize("options", [{}, {"resume": False}, {"retry_failed": True}])
def test_a_row_settled_in_this_run_is_not_sent_again(
    state: RowState, options: dict[str, bool]
) -> None:
    expected = ResumeDecision.QUEUED_BEFORE if state.terminal else ResumeDecision.QUEUED
    assert fate(record(state, run="run-1"), **options) is expected


def test_a_row_that_a_redrive_brought_here_is_left_to_it() -> None:
    brought = replace(record(RowState.CLAIMED, run="run-1"), redriven=True)
    assert fate(brought, retry_failed=True) is ResumeDecision.KEPT_FAILED
