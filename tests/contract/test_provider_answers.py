"""Every answer of the corpus, through the real SDKs, has its outcome and its sentence."""

import time
import traceback
import warnings

import pytest

from darkroom.calls import CallFailed, EditResult, Outcome
from darkroom.csv_input.values import parse_model
from tests.corpus.answers import KEY, Answer, answers, outcome_of, sources
from tests.corpus.answers_page import PAGE, written

FLAGS = ("daily", "maybe_charged", "unknown", "retry_once", "too_large_for_limit")
SECONDS = 5.0  # of CPU: nothing else takes time here, and the machine may be busy


@pytest.fixture(autouse=True, scope="module")
def _sdks_are_imported() -> None:
    """Which takes seconds on a busy machine."""
    for answer in answers()[:1] + answers()[-1:]:
        outcome_of(answer.response(), answer.endpoint())


def name_of(answer: Answer) -> str:
    return f"{answer.provider} {answer.status} {answers().index(answer)}"


@pytest.fixture(autouse=True)
def _no_warning_is_an_error() -> None:
    """The SDK warns of what it does not know; the adapter's own filter applies outside pytest."""
    warnings.simplefilter("ignore", UserWarning)


@pytest.mark.parametrize("answer", answers(), ids=name_of)
def test_every_answer_has_its_outcome_and_its_sentence(answer: Answer) -> None:
    before = time.thread_time()
    made = outcome_of(answer.response(), answer.endpoint(), model_of_row=answer.model_of_row)
    assert time.thread_time() - before < SECONDS
    limits = made.provider_limits
    stated = {n: v for n in limits.__slots__ if (v := getattr(limits, n)) is not None}
    assert stated == answer.limits
    if isinstance(made, EditResult):
        assert answer.outcome is Outcome.SUCCEEDED
        assert f"{len(made.images)} images, cost {made.cost_micro_usd}" == answer.detail
        assert parse_model(made.model) == made.model != KEY  # it is stored and shown
        return
    assert (made.outcome, made.detail) == (answer.outcome, answer.detail)
    assert {flag for flag in FLAGS if getattr(made, flag)} == set(answer.flags)
    assert made.retry_after_seconds == answer.wait
    assert_safe(made)
    assert "5ecret" not in made.detail


def assert_safe(failed: CallFailed) -> None:
    """Safe to store and to show: one line, bounded, printable, without the key or markup."""
    assert len(failed.detail) <= 600
    assert failed.detail.isprintable()
    assert "<script" not in failed.detail
    shown = "".join(traceback.format_exception(failed)) + repr(failed)
    assert KEY not in shown


def test_only_answers_about_policy_are_refusals() -> None:
    """An unknown body never becomes one, whatever its type says."""
    words = [
        *("safety", "policy", "policies", "filter", "blockReason", "SAFETY", "PROHIBITED"),
        *("RECITATION", "SPII", "BLOCKLIST", "ESCALATION", "MODEL_ARMOR", "Responsible AI"),
    ]
    refused = [a for a in answers() if a.outcome is Outcome.REFUSED]
    assert len(refused) > 15
    for answer in refused:
        assert any(word in answer.shown for word in words), answer.shown


def test_every_answer_names_its_source_and_every_source_is_used() -> None:
    assert {a.source for a in answers()} == set(sources())
    assert len(answers()) >= 120


def test_the_page_has_the_table_of_these_answers() -> None:
    """If not: `python -m tests.corpus.answers_page`."""
    page = PAGE.read_text()
    assert written(page) == page
