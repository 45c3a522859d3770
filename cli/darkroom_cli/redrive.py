"""`redrive`: dead letters back into the rows queue, each sent before it is deleted."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from darkroom.formatting import plural
from darkroom_cli.bars import counting
from darkroom_cli.ports import DeadLetter, DeadLetters
from darkroom_cli.sentences import CommandFailed
from darkroom_cli.session import Session

_BATCH_BYTES = 900_000  # SQS takes 1 MiB per request, attributes included
_POLL_SECONDS = 2.0


@dataclass(slots=True)
class Redriven:
    """What a redrive came to. `kept`: messages that did not match, by reason."""

    moved: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)


def redrive(session: Session, job: str | None, reason: str | None) -> None:
    letters = session.stack.dead_letters
    if job is None and reason is None and _moved_by_sqs(session, letters):
        return

    def wanted(letter: DeadLetter) -> bool:
        return (job is None or letter.job == job) and (reason is None or letter.reason == reason)

    with counting(session, "Redriving", None) as moved:
        done = move_matching(letters, wanted, moved)
    total = sum(done.moved.values())
    session.answer(
        _sentence(total, done, job, reason),
        {"redriven": total, "by_reason": dict(done.moved), "kept": dict(done.kept)},
    )


def _sentence(total: int, done: Redriven, job: str | None, reason: str | None) -> str:
    what = "".join((f" of job {job}" if job else "", f" with reason {reason}" if reason else ""))
    if not total:
        left = sum(done.kept.values())
        held = f" ({plural(left, 'other message')} stayed)" if left else ""
        return f"The dead-letter queue holds no messages{what}{held}."
    by = ", ".join(f"{n:,} {r or 'without a reason'}" for r, n in done.moved.most_common())
    named = "" if reason else f": {by}"
    return f"Redrove {plural(total, 'row')}{what}{named}. They are in the rows queue again."


def _moved_by_sqs(session: Session, letters: DeadLetters) -> bool:
    """True when SQS did it. It has no filter, and its progress is approximate."""
    waiting = letters.count()
    progress = letters.move_all() if waiting else iter(())
    if progress is None:
        return False
    moved = 0
    for moved in progress:
        session.note(f"{moved:,} of about {waiting:,} moved")
        session.wiring.clock.sleep(_POLL_SECONDS)
    session.answer(
        f"Redrove {plural(moved, 'message')}. They are in the rows queue again."
        if moved
        else "The dead-letter queue is empty.",
        {"redriven": moved},
    )
    return True


def move_matching(
    letters: DeadLetters, wanted: Callable[[DeadLetter], bool], moved: Callable[[], None]
) -> Redriven:
    """Move what matches; make the rest visible again, even when interrupted.

    A message is sent before it is deleted: an interruption leaves it in both queues at worst, and
    the ledger lets a row be edited once only.
    """
    done, seen, held = Redriven(), set[str](), dict[str, DeadLetter]()
    try:
        while batch := letters.receive():
            fresh = [letter for letter in batch if letter.id not in seen]
            if not fresh:
                break  # what we hold comes round again: all others were seen
            seen.update(letter.id for letter in fresh)
            held |= {letter.id: letter for letter in fresh}
            for part in _parts([letter for letter in fresh if wanted(letter)]):
                for letter in _move(letters, part):
                    del held[letter.id]
                    done.moved[letter.reason] += 1
                    moved()
    finally:
        letters.release(list(held.values()))
    done.kept.update(letter.reason for letter in held.values())
    return done


def _move(letters: DeadLetters, part: Sequence[DeadLetter]) -> Sequence[DeadLetter]:
    accepted = letters.send_back(part)
    letters.delete(accepted)
    if len(accepted) < len(part):
        raise CommandFailed(
            f"The rows queue did not take {plural(len(part) - len(accepted), 'message')}: they "
            "stay in the dead-letter queue, run the command again."
        )
    return accepted


def _parts(letters: Sequence[DeadLetter]) -> Iterator[list[DeadLetter]]:
    part, size = list[DeadLetter](), 0
    for letter in letters:
        weight = len(letter.body.encode())
        if part and size + weight > _BATCH_BYTES:
            yield part
            part, size = [], 0
        part.append(letter)
        size += weight
    if part:
        yield part
