"""Workers that a test moves forward one outside step at a time, and kills between any two."""

import threading
from collections.abc import Callable
from enum import Enum

from darkroom.errors import ServiceUnavailable


class Fault(Enum):
    """What happens to the step a worker stands before."""

    NONE = "none"
    LOST_REQUEST = "lost request"  # nothing is done, and the service is said to be unavailable
    LOST_ANSWER = "lost answer"  # it is done, and the service is said to be unavailable


class _Killed(BaseException):
    """The process is gone: no handler of errors sees this."""


class Worker:
    """Runs `work` in a thread that stops before every step, until `go` or `kill`."""

    def __init__(self, name: str, work: Callable[[], object]) -> None:
        self.name = name
        self.over = False
        self.killed = False
        self.result: object = None
        self.error: BaseException | None = None
        self.at = "start"
        self._fault = Fault.NONE
        self._work = work
        self._turn = threading.Semaphore(0)
        self._stopped = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        self._stopped.acquire()

    def _run(self) -> None:
        _current.worker = self
        try:
            self._stop("start")
            self.result = self._work()
        except _Killed:
            self.killed = True
        except BaseException as error:  # noqa: BLE001  # told to the test, which fails with it
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
        """Take the step, with its fault, and run to the next one."""
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
    """An outside step of the current worker; outside of workers it is just done."""
    worker: Worker | None = getattr(_current, "worker", None)
    if worker is None or worker.over:
        return action()
    fault = worker._stop(name)
    if fault is Fault.LOST_REQUEST:
        raise ServiceUnavailable(f"{name} was not done")
    result = action()
    if fault is Fault.LOST_ANSWER:
        raise ServiceUnavailable(f"{name} was done")
    return result


class Stepped:
    """A port whose every call is a step."""

    def __init__(self, inner: object, name: str) -> None:
        self._inner = inner
        self._name = name

    def __getattr__(self, attribute: str) -> Callable[..., object]:
        method = getattr(self._inner, attribute)
        name = f"{self._name}.{attribute}"
        return lambda *args, **named: step(name, lambda: method(*args, **named))
