"""What an upload does with a row it knows: every combination has its answer."""

from dataclasses import replace

import pytest

from darkroom.errors import Reason
from darkroom.intake.resuming import Fate, fate_of
from darkroom.jobs import JobOptions
from darkroom.ledger.values import RowRecord, RowResult, RowState
from tests.fakes.ledger import running

OLD, CHANGED = "asks-the-same", "asks-otherwise"


def record(state: RowState, reason: Reason | None = None, run: str = "run-0") -> RowRecord:
    result = RowResult(state, reason) if state.terminal else None
    return RowRecord("000000", 0, state, OLD, run, result=result)


def fate(known: RowRecord | None, fingerprint: str = OLD, /, **options: bool) -> Fate:
    return fate_of(known, fingerprint, running(options=JobOptions.model_validate(options)))


@pytest.mark.parametrize("options", [{}, {"resume": False}, {"retry_failed": True}])
def test_a_row_never_seen_is_queued(options: dict[str, bool]) -> None:
    assert fate(None, **options) is Fate.QUEUED


def test_a_success_is_resumed_unless_it_changed_or_resume_is_off() -> None:
    done = record(RowState.SUCCEEDED)
    assert fate(done) is Fate.RESUMED
    assert fate(done, retry_failed=True) is Fate.RESUMED
    assert fate(done, CHANGED) is Fate.QUEUED
    assert fate(done, resume=False) is Fate.QUEUED


@pytest.mark.parametrize("state", [RowState.SUCCEEDED, RowState.FAILED, RowState.DEAD])
def test_a_row_settled_for_an_earlier_upload_since_this_one_began_stays_queued(
    state: RowState,
) -> None:
    run = running()
    before = replace(record(state, Reason.REFUSED), updated_at=run.started_at - 1)
    since = replace(before, updated_at=run.started_at + 1)
    assert fate_of(before, OLD, run) is not Fate.QUEUED
    assert fate_of(since, OLD, run) is Fate.QUEUED


@pytest.mark.parametrize("state", [RowState.FAILED, RowState.DEAD])
def test_a_failure_is_kept_unless_asked_for_changed_or_redone(state: RowState) -> None:
    failed = record(state, Reason.REFUSED)
    assert fate(failed) is Fate.KEPT_FAILED
    assert fate(failed, retry_failed=True) is Fate.QUEUED
    assert fate(failed, CHANGED) is Fate.QUEUED
    assert fate(failed, resume=False) is Fate.QUEUED


@pytest.mark.parametrize("reason", list(Reason))
def test_only_a_budget_and_a_stop_are_lifted_by_any_new_upload(reason: Reason) -> None:
    lifted = reason in (Reason.BUDGET, Reason.STOPPED)
    expected = Fate.QUEUED if lifted else Fate.KEPT_FAILED
    assert fate(record(RowState.FAILED, reason)) is expected


@pytest.mark.parametrize("state", [RowState.CLAIMED, RowState.SENT])
def test_a_row_still_in_work_for_an_earlier_upload_is_queued(state: RowState) -> None:
    assert fate(record(state)) is Fate.QUEUED


@pytest.mark.parametrize("state", list(RowState))
@pytest.mark.parametrize("options", [{}, {"resume": False}, {"retry_failed": True}])
def test_a_row_settled_in_this_run_is_not_sent_again(
    state: RowState, options: dict[str, bool]
) -> None:
    expected = Fate.SENT_BEFORE if state.terminal else Fate.QUEUED
    assert fate(record(state, run="run-1"), **options) is expected


def test_a_row_that_a_redrive_brought_here_is_left_to_it() -> None:
    brought = replace(record(RowState.CLAIMED, run="run-1"), extra=True)
    assert fate(brought, retry_failed=True) is Fate.KEPT_FAILED
