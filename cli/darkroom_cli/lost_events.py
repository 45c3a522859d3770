"""`darkroom lost-events`: uploads and reports that failed three times; shown, or started again."""

from collections.abc import Sequence

from darkroom.aws.events import uploads_in
from darkroom.formatting import plural
from darkroom_cli.session import Session
from darkroom_cli.stack import LostEvent, LostEvents


def lost_events(session: Session, *, replay: bool) -> None:
    queue = session.stack.lost_events
    found = _receive_all(queue)
    replayed: list[LostEvent] = []
    try:
        if replay:
            for event in found:
                queue.replay(event)  # started before it is deleted: at worst it runs twice
                queue.delete(event)
                replayed.append(event)
    finally:
        queue.release([event for event in found if event not in replayed])
    if session.json:
        session.print_json([_as_json(event, replayed=event in replayed) for event in found])
        return
    if not found:
        session.note("No events are lost.")
        return
    columns = ("time", "function", "event", "error")
    session.print_table(columns, map(_cells, found), right=(), folded="error")
    if replay:
        session.note(f"Started {plural(len(replayed), 'event')} again.")
    else:
        session.note(f"{plural(len(found), 'event')}: see the log, then run this with --replay.")


def _receive_all(queue: LostEvents) -> list[LostEvent]:
    found: dict[str, LostEvent] = {}
    while batch := queue.receive():
        new = {event.id: event for event in batch if event.id not in found}
        if not new:
            break  # they became visible again: all others were received
        found |= new
    return list(found.values())


def describe(event: LostEvent) -> str:
    """The upload or the job that the event is about."""
    if event.payload.get("sweep"):
        return "sweep of unfinished jobs"
    if job := event.payload.get("job"):
        return f"report of {job}"
    try:
        uploads: Sequence[str] = [upload.key for upload in uploads_in(event.payload)]
    except ValueError:
        uploads = ()
    return f"upload of {', '.join(uploads)}" if uploads else "unknown"


def _cells(event: LostEvent) -> tuple[str, ...]:
    return event.failed_at, event.function, describe(event), event.error


def _as_json(event: LostEvent, *, replayed: bool) -> dict[str, object]:
    return {
        "id": event.id,
        "failed_at": event.failed_at,
        "function": event.function,
        "event": describe(event),
        "error": event.error,
        "payload": event.payload,
        "replayed": replayed,
    }
