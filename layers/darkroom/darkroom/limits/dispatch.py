"""Retry and fallback: which endpoint a row is sent to, and what an outcome leads to.

Per endpoint: the first call and `max_retries` more, with backoff; then the next endpoint of the
tier; then the next tier. Only transient outcomes and rejected keys move on. What blames the row
ends it at once. An endpoint that is out of service (breaker open, keys resting, day spent) is
passed over without a call; one that is merely busy is waited for.
"""

import random
from collections.abc import Callable, Mapping

from darkroom.calls import Provider
from darkroom.endpoints import EndpointsSecret
from darkroom.limits import limiter
from darkroom.limits.aftermath import Aftermath
from darkroom.limits.desk import Desk
from darkroom.limits.endpoint_state import StatesUnavailable
from darkroom.limits.errand import Delivery, Errand, Ineligible, LeaseLost
from darkroom.limits.journey import Journey
from darkroom.limits.pool import Pool
from darkroom.ports import Clock, EndpointStates, ImageEditor, SecretSource, Telemetry

__all__ = ["Delivery", "Dispatcher", "Editors", "Errand", "Ineligible", "LeaseLost"]

type Editors = Mapping[Provider, ImageEditor] | Callable[[Provider], ImageEditor]


class Dispatcher:
    """One per process, shared by its threads.

    `editors` may be a function of the provider, so that an SDK is imported only when it is needed;
    a provider it has not (KeyError) is a warning. `margin` is the limiter's, in microseconds.
    """

    def __init__(  # noqa: PLR0917 - wiring, made in one place
        self,
        secret_source: SecretSource,
        states: EndpointStates,
        editors: Editors,
        clock: Clock,
        rng: random.Random,
        telemetry: Telemetry,
        margin: int = limiter.MARGIN,
    ) -> None:
        self.source = secret_source
        self.clock = clock
        self.rng = rng
        self.telemetry = telemetry
        self.desk = Desk(states, clock, telemetry, margin)
        self.pool = Pool(self.desk, clock, rng)
        self.aftermath = Aftermath(self.desk, telemetry, margin)
        self._editors = editors
        self._warned: set[str] = set()

    def dispatch(self, errand: Errand, deadline: float) -> Delivery:
        """Find an endpoint, wait for its slot, call, retry, fall back; done by `deadline` (Unix s).

        Raises RowRejected (refused, no_image, bad_request; or no endpoint can honour the row),
        RetryRow (all calls failed: the first tier's error; or every key rests), DeferRow (no slot
        in time, or every endpoint is out of service; nothing was called), LeaseLost, and
        ConfigurationError when there never was a good secret.
        """
        secret = self.source.endpoints()
        self._warn_of_missing_fallback(secret)
        journey = Journey(self, errand, deadline, secret)
        try:
            return journey.run()
        except StatesUnavailable as error:
            raise journey.given_up(str(error)) from error

    def editor(self, provider: Provider) -> ImageEditor | None:
        """None, with one warning, when this process has no way to call the provider."""
        try:
            return self._editors(provider) if callable(self._editors) else self._editors[provider]
        except KeyError:
            self._warn_once("provider_missing", provider=provider.value)
            return None

    def _warn_of_missing_fallback(self, secret: EndpointsSecret) -> None:
        if len({e.tier for e in secret.endpoints}) == 1:
            only = ", ".join(sorted({e.provider.value for e in secret.endpoints}))
            self._warn_once("no_fallback", detail=f"only one tier is configured ({only})")

    def _warn_once(self, event: str, **fields: object) -> None:
        if event not in self._warned:
            self._warned.add(event)
            self.telemetry.warning(event, **fields)
