"""Lowers an endpoint's limits to what its account allows, as the provider's responses state it.

Kept per process: each worker sees it in the first response. The limits in the endpoints secret are
never raised, and what the provider states is only ever about the account of these keys.
"""

from collections.abc import Mapping
from dataclasses import asdict

from pydantic import SecretStr

from darkroom.calls import CallFailed, CallPlan, EditResult, ProviderLimits
from darkroom.endpoints import Endpoint, EndpointsSecret
from darkroom.ports import ImageEditor, SecretSource, Telemetry


class AccountLimits:
    """A ports.SecretSource over another one. Thread-safe: every change is one assignment."""

    def __init__(self, source: SecretSource, telemetry: Telemetry) -> None:
        self._source = source
        self._telemetry = telemetry
        self._stated: Mapping[str, ProviderLimits] = {}  # by the endpoint's name
        self._corrected: tuple[object, object, EndpointsSecret] | None = None

    def endpoints(self) -> EndpointsSecret:
        secret, stated = self._source.endpoints(), self._stated
        if not stated:
            return secret
        known = self._corrected
        if known is None or known[0] is not secret or known[1] is not stated:
            endpoints = tuple(_corrected(e, stated.get(e.name)) for e in secret.endpoints)
            known = secret, stated, secret.model_copy(update={"endpoints": endpoints})
            self._corrected = known
        return known[2]

    def refresh(self) -> None:
        self._source.refresh()

    def observe(self, endpoint: Endpoint, stated: ProviderLimits) -> None:
        """`endpoint` as it was called, with the limits in force."""
        if stated in (ProviderLimits(), self._stated.get(endpoint.name)):
            return
        before = self._stated.get(endpoint.name, ProviderLimits())
        merged = asdict(before) | {n: v for n, v in asdict(stated).items() if v is not None}
        self._stated = {**self._stated, endpoint.name: ProviderLimits(**merged)}
        lower = _lower(endpoint, self._stated[endpoint.name])
        for name, limit in lower.items():
            self._telemetry.warning(
                "limit_above_the_accounts",
                endpoint=endpoint.name,
                detail=f"{name} is {getattr(endpoint, name) or 'not limited'} in the endpoints "
                f"secret, and the account allows {limit}: {limit} is used",
            )


class ObservedEditor:
    """A ports.ImageEditor that passes on the limits that responses state."""

    def __init__(self, editor: ImageEditor, limits: AccountLimits) -> None:
        self._editor = editor
        self._limits = limits

    def edit(
        self, plan: CallPlan, endpoint: Endpoint, key: SecretStr, timeout_seconds: float
    ) -> EditResult:
        try:
            result = self._editor.edit(plan, endpoint, key, timeout_seconds)
        except CallFailed as failed:
            self._limits.observe(endpoint, failed.provider_limits)
            raise
        self._limits.observe(endpoint, result.provider_limits)
        return result


def _lower(endpoint: Endpoint, stated: ProviderLimits) -> dict[str, int]:
    """The stated limits that are lower than the endpoint's; 0 there means no limit."""
    return {
        name: limit
        for name, limit in asdict(stated).items()
        if limit is not None and limit < (getattr(endpoint, name) or limit + 1)
    }


def _corrected(endpoint: Endpoint, stated: ProviderLimits | None) -> Endpoint:
    return endpoint if stated is None else endpoint.model_copy(update=_lower(endpoint, stated))
