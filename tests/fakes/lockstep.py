"""Workers that a test advances one call of an outside service at a time, and kills in between."""

import threading
from collections.abc import Callable, Collection
from enum import Enum
from typing import Any

from darkroom.errors import ServiceUnavailable


class Fault(Enum):
    """What happens to the call that a worker is about to make."""

    NONE = "none"
    LOST_REQUEST = "lost request"  # nothing is done, and ServiceUnavailable is raised
    LOST_RESPONSE = "lost response"  # it is done, and ServiceUnavailable is raised


class _Killed(BaseException):
    """The process died: no error handler catches this."""


class Worker:
    """Runs `work` in a thread that stops before every step, until `go` or `kill`."""

    def __init__(self, name: str, work: Callable[[], object]) -> None:
        self.over = self.killed = False
        self.result: object = None
        self.error: BaseException | None = None
        self.at = "start"
        self._fault = Fault.NONE
        self._work = work
        self._turn = threading.Semaphore(0)
        self._stopped = threading.Semaphore(0)
        threading.Thread(target=self._run, name=name, daemon=True).start()
        self._stopped.acquire()

    def _run(self) -> None:
        _current.worker = self
        try:
            self._stop("start")
            self.result = self._work()
        except _Killed:
            self.killed = True
        except BaseException as error:  # noqa: BLE001  # raised by `go`, in the test
            self.error = error
        self.over = True
        self._stopped.release()

    def _stop(self, at: str) -> Fault:
        self.at = at
        self._stopped.release()
        self._turn.acquire()
        if self.killed:
            raise _Killed
        return self._fault

    def go(self, fault: Fault = Fault.NONE) -> None:
        """Make the call, with `fault`, and run to the next one."""
        self._fault = fault
        self._turn.release()
        self._stopped.acquire()
        if self.error is not None:
            raise self.error

    def finish(self) -> None:
        while not self.over:
            self.go()

    def kill(self) -> None:
        self.killed = True
        self._turn.release()
        self._stopped.acquire()


_current = threading.local()


def step[T](name: str, action: Callable[[], T]) -> T:
    """A call of an outside service by the current worker; without a worker it is just made."""
    worker: Worker | None = getattr(_current, "worker", None)
    if worker is None or worker.over:
        return action()
    fault = worker._stop(name)
    if fault is Fault.LOST_REQUEST:
        raise ServiceUnavailable(f"{name} was not done")
    result = action()
    if fault is Fault.LOST_RESPONSE:
        raise ServiceUnavailable(f"{name} was done")
    return result


class Stepped:
    """A port of which every call is a step, except those in `local`: they make no request."""

    def __init__(self, inner: object, name: str, local: Collection[str] = ()) -> None:
        self._inner = inner
        self._name = name
        self._local = local

    def __getattr__(self, attribute: str) -> Any:
        method = getattr(self._inner, attribute)
        if attribute in self._local:
            return method
        name = f"{self._name}.{attribute}"
        return lambda *args, **named: step(name, lambda: method(*args, **named))
