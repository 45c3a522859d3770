"""`darkroom redrive`: returns dead letters to the rows queue, each sent before it is deleted."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import typer

from darkroom.formatting import plural
from darkroom_cli.error_messages import CommandFailed, UsageMistake
from darkroom_cli.jobs import check_reason
from darkroom_cli.session import Session
from darkroom_cli.stack import DeadLetter, DeadLetterQueue
from darkroom_cli.status import find_run

_BATCH_BYTES = 900_000  # SQS takes 1 MiB per request, attributes included
_POLL_SECONDS = 2.0


def redrive(
    session: Session,
    job: str | None,
    reason: str | None,
    *,
    dry_run: bool = False,
    assume_yes: bool = False,
) -> None:
    """Raises CommandFailed for an unknown job, UsageMistake if all jobs were not confirmed."""
    check_reason(reason)
    queue = session.stack.dead_letters
    where = "They are in the rows queue again."
    if job is not None:
        run = find_run(session, job)
        job = run.job
        if run.options.mode == "batch":
            where = "They are in the rows queue again, and go into the next batch."
    elif not (dry_run or assume_yes):
        _confirm_all_jobs(session, queue, reason)
    if job is None and reason is None and not dry_run and _moved_by_sqs(session, queue):
        return

    def matches(letter: DeadLetter) -> bool:
        return (job is None or letter.job == job) and (reason is None or letter.reason == reason)

    if dry_run:
        _print_matching(session, queue, matches)
        return
    with session.progress_bar("Redriving", None) as advance:
        moved, kept = _move_matching(queue, matches, advance)
    scope = "".join((f" of job {job}" if job else "", f" with reason {reason}" if reason else ""))
    if moved:
        counts = (f"{n:,} {name or 'without a reason'}" for name, n in moved.most_common())
        by_reason = "" if reason else f": {', '.join(counts)}"
        rows = plural(moved.total(), "row")
        text = f"Redrove {rows}{scope}{by_reason}. {where}"
    else:
        others = f" ({plural(kept.total(), 'other message')} left in it)" if kept else ""
        text = f"The dead-letter queue has no messages{scope}{others}."
    session.print_result(
        text, {"redriven": moved.total(), "by_reason": dict(moved), "kept": dict(kept)}
    )


def _confirm_all_jobs(session: Session, queue: DeadLetterQueue, reason: str | None) -> None:
    if not session.is_interactive:
        raise UsageMistake(
            "Name a job, or add --yes to return the dead rows of all jobs; --dry-run shows them."
        )
    if not (dead := queue.count()):
        session.print_text("The dead-letter queue is empty.")
        raise typer.Exit
    scope = f", those with reason {reason}" if reason else ""
    rows = plural(dead, "dead row")
    if not typer.confirm(f"Return the dead rows of all jobs{scope} ({rows} in all)?", err=True):
        raise typer.Exit(1)


def _print_matching(
    session: Session, queue: DeadLetterQueue, matches: Callable[[DeadLetter], bool]
) -> None:
    """Receives every message and makes it visible again."""
    found = Counter[tuple[str, str]]()
    held: dict[str, DeadLetter] = {}
    try:
        for batch in _receive_all(queue):
            held |= {letter.id: letter for letter in batch}
            found.update((letter.job, letter.reason) for letter in batch if matches(letter))
    finally:
        queue.release(list(held.values()))
    if session.json:
        rows = [{"job": job, "reason": reason, "rows": n} for (job, reason), n in found.items()]
        session.print_json({"would_redrive": found.total(), "of": len(held), "groups": rows})
        return
    cells = (
        (job or "no row", reason or "without a reason", f"{n:,}")
        for (job, reason), n in found.most_common()
    )
    session.print_table(("job", "reason", "rows"), cells, right=("rows",), folded="job")
    rows_found = plural(found.total(), "row")
    session.note(f"Would redrive {rows_found} of {plural(len(held), 'message')}.")


def _receive_all(queue: DeadLetterQueue) -> Iterator[list[DeadLetter]]:
    """Each message once, in the batches that SQS returns."""
    received = set[str]()
    while batch := queue.receive():
        new = [letter for letter in batch if letter.id not in received]
        if not new:
            return  # only messages that became visible again: all others were received
        received.update(letter.id for letter in new)
        yield new


def _moved_by_sqs(session: Session, queue: DeadLetterQueue) -> bool:
    """True if SQS moved the messages. It has no filter, and its progress is approximate."""
    waiting = queue.count()
    progress = queue.move_all() if waiting else iter(())
    if progress is None:
        return False
    moved = 0
    for moved in progress:
        session.note(f"{moved:,} of about {waiting:,} moved")
        session.clock.sleep(_POLL_SECONDS)
    session.print_result(
        f"Redrove {plural(moved, 'message')}. They are in the rows queue again."
        if moved
        else "The dead-letter queue is empty.",
        {"redriven": moved},
    )
    return True


def _move_matching(
    queue: DeadLetterQueue, matches: Callable[[DeadLetter], bool], advance: Callable[[], None]
) -> tuple[Counter[str], Counter[str]]:
    """Move what matches; make the other messages visible again, even when interrupted.

    Returns the messages moved and the others, counted by reason.
    A message is sent before it is deleted: an interruption leaves it in both queues at worst, and
    the ledger lets a row be edited only once.
    """
    moved, held = Counter[str](), dict[str, DeadLetter]()
    try:
        for new in _receive_all(queue):
            held |= {letter.id: letter for letter in new}
            for group in _batches([letter for letter in new if matches(letter)]):
                for letter in _move(queue, group):
                    del held[letter.id]
                    moved[letter.reason] += 1
                    advance()
    finally:
        queue.release(list(held.values()))
    return moved, Counter(letter.reason for letter in held.values())


def _move(queue: DeadLetterQueue, letters: Sequence[DeadLetter]) -> Sequence[DeadLetter]:
    accepted = queue.requeue(letters)
    queue.delete(accepted)
    if rejected := len(letters) - len(accepted):
        raise CommandFailed(
            f"The rows queue did not accept {plural(rejected, 'message')}: they stay in the "
            "dead-letter queue, run the command again."
        )
    return accepted


def _batches(letters: Sequence[DeadLetter]) -> Iterator[list[DeadLetter]]:
    batch, size = list[DeadLetter](), 0
    for letter in letters:
        letter_bytes = len(letter.body.encode())
        if batch and size + letter_bytes > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(letter)
        size += letter_bytes
    if batch:
        yield batch
