"""What a job would cost and how long it would take, from its rows and the endpoints. No I/O."""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from math import ceil
from pkgutil import resolve_name

from pydantic import SecretStr

from darkroom.calls import CallPlan
from darkroom.csv_input.reader import JobRow
from darkroom.dispatch import rate_limiter
from darkroom.endpoint_state import SECOND
from darkroom.endpoints import Endpoint, EndpointsSecret
from darkroom.errors import Ineligible, RowRejected
from darkroom.formatting import money
from darkroom.jobs import JobOptions
from darkroom.models.catalog import DEFAULTS, MODELS, Model, least_image_price, model_at
from darkroom.models.planner import (
    check_mode,
    check_operation,
    endpoint_in_mode,
    model_for,
    plan_call,
)
from darkroom.ports import BatchProvider
from darkroom.providers.registry import PROVIDERS
from darkroom.rows import Mode, RowRequest

MAX_GROUPS = 30  # different reasons or warnings that are counted apart
DAY_SECONDS = 86_400
RETENTION_SECONDS = 14 * DAY_SECONDS  # SQS's maximum, set in the template
BATCH_SECONDS = DAY_SECONDS  # within which the providers answer a batch (docs/batch.md)
_FIRST_ROWS = 5
_MAX_CACHED_PLANS = 2_000
_UNLIMITED_CALLS_PER_SECOND = 1_000.0
_ROW_VALUES = re.compile(r"'[^']*'|\d[\d,.]*")  # quoted cells and numbers within a detail
# Of these attributes of a request, only a part matters to its plan.
_SUMMARIZED_IN_KEY = frozenset({"instruction", "images", "mask", "output_name"})
_PROMPT_LIMITS = sorted({m.max_prompt_characters for m in (*MODELS, *DEFAULTS.values())})


@dataclass(slots=True)
class FailureGroup:
    """Rows that will fail for the same reason; `detail` is the first one's."""

    detail: str
    rows: int = 0
    first_rows: list[int] = field(default_factory=list)


@dataclass(slots=True)
class FailureGroups:
    """Rows that will fail, grouped by reason. Bounded in size, whatever the rows contain."""

    count: int = 0
    groups: dict[str, FailureGroup] = field(default_factory=dict)

    def add(self, row: int, detail: str) -> None:
        self.count += 1
        reason = _ROW_VALUES.sub("'…'", detail)
        if reason not in self.groups and len(self.groups) >= MAX_GROUPS:
            reason, detail = "", "other reasons"
        group = self.groups.setdefault(reason, FailureGroup(detail))
        group.rows += 1
        if len(group.first_rows) < _FIRST_ROWS:
            group.first_rows.append(row)


@dataclass(frozen=True, slots=True)
class Throughput:
    """How fast the workers and the endpoints' limits let calls through."""

    call_seconds: float  # assumed duration of a call
    workers: int | None = None  # rows in work at once, over all processes
    images_per_call: float = 1.0  # on average
    input_images_per_call: float = 1.0

    def calls_per_second(self, endpoint: Endpoint) -> float:
        """Within the endpoint's limits, except its daily one."""
        limits = rate_limiter.limits_of(endpoint)
        bounds = [self.workers / self.call_seconds] if self.workers else []
        if seconds := self._seconds_between_calls(endpoint):
            bounds.append(1 / seconds)
        if limits.max_in_flight:
            bounds.append(limits.max_in_flight / self.call_seconds)
        return min(bounds, default=_UNLIMITED_CALLS_PER_SECOND)

    def _seconds_between_calls(self, endpoint: Endpoint) -> float:
        """By the limit per minute that is the tightest for calls with that many images."""
        of_images = (
            (endpoint.images_per_minute, self.images_per_call),
            (endpoint.input_images_per_minute, self.input_images_per_call),
        )
        by_images = [60 * each / limit for limit, each in of_images if limit]
        return max([rate_limiter.limits_of(endpoint).interval / SECOND, *by_images])

    def job_seconds(self, calls: Mapping[str, int], secret: EndpointsSecret) -> float:
        """Until the last call ends, for `calls` by endpoint."""
        bounds = [self._endpoint_seconds(e, calls.get(e.name, 0)) for e in secret.endpoints]
        if self.workers:
            bounds.append(sum(calls.values()) * self.call_seconds / self.workers)
        return max(bounds, default=0.0)

    def _endpoint_seconds(self, endpoint: Endpoint, calls: int) -> float:
        if not calls:
            return 0.0
        daily = endpoint.requests_per_day
        full_days = ceil(calls / daily) - 1 if daily else 0
        calls -= full_days * daily
        limits = rate_limiter.limits_of(endpoint)
        # The last call begins after all others have begun, and lasts as long as any.
        spaced = (calls - 1) * self._seconds_between_calls(endpoint) + self.call_seconds
        parallel = min((n for n in (limits.max_in_flight, self.workers) if n), default=calls)
        return full_days * DAY_SECONDS + max(spaced, ceil(calls / parallel) * self.call_seconds)


@dataclass(slots=True)
class Estimate:
    """Totals over a job's rows. Money in micro-USD, for calls that each succeed the first time."""

    mode: Mode = "live"
    rows: int = 0
    skipped: int = 0
    invalid: FailureGroups = field(default_factory=FailureGroups)
    impossible: FailureGroups = field(default_factory=FailureGroups)  # no endpoint can take them
    # Of a job with mode=batch: rows that cannot be in a batch, and are called for instead.
    not_batched: FailureGroups = field(default_factory=FailureGroups)
    images: int = 0
    input_images: int = 0
    kept: int = 0  # rows that an earlier upload did: neither called for nor paid again
    kept_failed: int = 0  # rows that failed in an earlier upload, unchanged: not tried again
    open_quality: int = 0  # rows whose quality, and with it their price, is left to the provider
    within_budget: int = 0  # rows that a budget is sure to pay for
    least: int = 0  # each row at the cheapest endpoint of its first tier, output images alone
    expected_most: int = 0  # at the most expensive of its first tier, text and thoughts included
    most: int = 0  # at its most expensive endpoint of any tier
    unpriced: int = 0  # rows that may go to a model whose price is unknown
    unpriced_models: set[str] = field(default_factory=set)
    calls: Counter[str] = field(default_factory=Counter)  # by endpoint, first tier first
    requests: Counter[str] = field(default_factory=Counter)  # in batches, by endpoint
    over_daily_limit: Counter[str] = field(default_factory=Counter)  # rows, by endpoint
    warnings: Counter[str] = field(default_factory=Counter)

    @property
    def to_do(self) -> int:
        kept = self.kept + self.kept_failed
        others = self.skipped + kept + self.invalid.count + self.impossible.count
        return self.rows - others

    def seconds(self, throughput: Throughput, secret: EndpointsSecret) -> float:
        """Until the last row ends; requests in batches may take as long as the providers allow."""
        of_calls = self.throughput(throughput).job_seconds(self.calls, secret)
        return max(of_calls, BATCH_SECONDS if self.requests else 0.0)

    @property
    def price(self) -> str:
        """Of the first tier, in words."""
        least, most = (money(amount / 1e6) for amount in (self.least, self.expected_most))
        return least if least == most else f"{least} to {most}"

    def throughput(self, of_calls: Throughput) -> Throughput:
        """`of_calls` with the average numbers of images of these rows."""
        rows = self.to_do or 1
        images, inputs = self.images / rows, self.input_images / rows
        return replace(of_calls, images_per_call=images, input_images_per_call=inputs)


def estimate(
    rows: Iterable[JobRow],
    secret: EndpointsSecret,
    throughput: Throughput,
    today: date,
    *,
    options: JobOptions,
    modes: Collection[Mode],
) -> dict[Mode, Estimate]:
    """The job's totals in each of the modes, from one pass over the rows.

    The memory needed does not grow with their number. With a budget, rows are counted against it at
    the price that the workers reserve.
    """
    estimators = {mode: _Estimator.of(mode, secret, today, options) for mode in modes}
    for row in rows:
        for estimator in estimators.values():
            estimator.add(row)
    return {mode: estimator.finish(throughput) for mode, estimator in estimators.items()}


@dataclass(slots=True)
class _Estimator:
    """Adds up the rows of a job in one mode."""

    secret: EndpointsSecret
    totals: Estimate
    planner: "_CachingPlanner"
    instead: "_CachingPlanner | None"  # for rows that cannot be in a batch
    budget: int | None
    # Rows by the endpoints that can take them, and whether they are called for.
    by_endpoints: Counter[tuple[bool, tuple[str, ...]]] = field(default_factory=Counter)

    @classmethod
    def of(
        cls, mode: Mode, secret: EndpointsSecret, today: date, options: JobOptions
    ) -> "_Estimator":
        called = mode == "batch" and options.batch_fallback == "live"
        instead = _CachingPlanner(secret, today, "live") if called else None
        planner = _CachingPlanner(secret, today, mode)
        return cls(secret, Estimate(mode), planner, instead, options.budget_micro_usd)

    def add(self, row: JobRow) -> None:
        totals = self.totals
        totals.rows += 1
        if row.skipped:
            totals.skipped += 1
        elif isinstance(row.request, RowRejected):
            totals.invalid.add(row.row, row.request.detail)
        else:
            self._add_request(row.row, row.request)

    def _add_request(self, row: int, request: RowRequest) -> None:
        candidates, called = self.planner.candidates(request), self.totals.mode != "batch"
        live = self.instead.candidates(request) if self.instead else None
        if not candidates.all and live is not None and live.all:
            self.totals.not_batched.add(row, candidates.rejections)
            candidates, called = live, True
        if not candidates.all:
            self.totals.impossible.add(row, candidates.rejections)
            return
        _add_row(self.totals, request, candidates, self.budget)
        if live is not None and not called:  # a batch may leave the row without an answer
            in_batch, as_call = candidates.worst_price(request), live.worst_price(request)
            self.totals.most += max(as_call - in_batch, 0)
        self.by_endpoints[called, tuple(c.endpoint.name for c in candidates.all)] += 1

    def finish(self, throughput: Throughput) -> Estimate:
        totals = self.totals
        throughput = totals.throughput(throughput)
        for (called, names), count in self.by_endpoints.items():
            tiers = [[e for e in tier if e.name in names] for tier in self.secret.tiers()]
            tiers = [tier for tier in tiers if tier]
            if called:
                _distribute(totals, tiers, count, throughput)
            else:  # limits per minute or day are not those of batches
                shares = _shares(tiers[0], count, lambda endpoint: endpoint.weight)
                totals.requests.update({e.name: share for e, share in shares})
        in_order = [endpoint.name for tier in self.secret.tiers() for endpoint in tier]
        totals.calls = _ordered(totals.calls, in_order)
        totals.requests = _ordered(totals.requests, in_order)
        return totals


def _ordered(counts: Counter[str], names: Iterable[str]) -> Counter[str]:
    return Counter({name: counts[name] for name in names if counts[name]})


@dataclass(frozen=True, slots=True)
class _Candidate:
    """An endpoint that can take a row. Prices without the row's instruction, in micro-USD."""

    endpoint: Endpoint
    plan: CallPlan
    least: int | None
    most: float | None
    per_instruction_byte: float
    open_quality: bool = False  # the model has qualities, and the row and endpoint name none

    def worst_price(self, request: RowRequest) -> int:
        """0 if the price is unknown: such rows are counted as `unpriced`."""
        size = len(request.instruction.encode())
        return ceil((self.most or 0) + size * self.per_instruction_byte)


@dataclass(frozen=True, slots=True)
class _Candidates:
    all: tuple[_Candidate, ...]
    first_tier: tuple[_Candidate, ...]
    rejections: str  # why the other endpoints cannot take the row

    def worst_price(self, request: RowRequest) -> int:
        return max((c.worst_price(request) for c in self.all), default=0)


def _add_row(
    totals: Estimate, request: RowRequest, candidates: _Candidates, budget: int | None
) -> None:
    first_tier = candidates.first_tier
    totals.images += first_tier[0].plan.n
    totals.input_images += len(request.images)
    totals.open_quality += any(c.open_quality for c in first_tier)
    for warning in {w for c in first_tier for w in c.plan.warnings}:
        known = warning in totals.warnings or len(totals.warnings) < MAX_GROUPS
        totals.warnings[warning if known else "other warnings"] += 1
    totals.least += min((c.least for c in first_tier if c.least is not None), default=0)
    totals.expected_most += max(c.worst_price(request) for c in first_tier)
    totals.most += candidates.worst_price(request)
    unpriced = [c.plan.model for c in candidates.all if c.most is None]
    totals.unpriced += bool(unpriced)
    totals.unpriced_models.update(unpriced[:MAX_GROUPS])
    if budget is not None and totals.expected_most <= budget:
        totals.within_budget += not any(c.most is None for c in first_tier)


@dataclass(slots=True)
class _CachingPlanner:
    """Plans once for all rows that differ only in their instruction and image references."""

    secret: EndpointsSecret
    today: date
    mode: Mode
    cache: dict[tuple[object, ...], _Candidates] = field(default_factory=dict)
    batches: dict[str, BatchProvider] = field(default_factory=dict)  # by endpoint

    def candidates(self, request: RowRequest) -> _Candidates:
        key = (
            *(value for name, value in request if name not in _SUMMARIZED_IN_KEY),
            *(len(request.images), request.mask is None),
            (request.output_name or "").rpartition(".")[2].lower(),
            bisect_left(_PROMPT_LIMITS, len(request.instruction)),
        )
        found = self.cache.get(key)
        if found is None:
            if len(self.cache) >= _MAX_CACHED_PLANS:
                self.cache.clear()
            found = self.cache[key] = self._plan(request)
        return found

    def _plan(self, request: RowRequest) -> _Candidates:
        candidates: list[_Candidate] = []
        rejections: dict[str, None] = {}
        for endpoint in self.secret.endpoints:
            if not endpoint.weight:  # drained
                continue
            try:
                candidates.append(self._candidate(endpoint, request))
            except Ineligible as error:
                rejections[str(error)] = None
        first = min((c.endpoint.tier for c in candidates), default=0)
        first_tier = tuple(c for c in candidates if c.endpoint.tier == first)
        return _Candidates(tuple(candidates), first_tier, "; ".join(rejections))

    def _candidate(self, endpoint: Endpoint, request: RowRequest) -> _Candidate:
        """Plan the row for the endpoint's model without loading its images. Raises Ineligible."""
        endpoint, batch = endpoint_in_mode(endpoint, self.mode), self.mode == "batch"
        check_mode(endpoint, self.mode)
        model = model_at(endpoint, model_for(request.model, endpoint), batch=batch)
        check_operation(model, images=bool(request.images), mask=request.mask is not None)
        plan = plan_call(request, (), None, endpoint, self.today, batch=batch)
        if batch:
            self._batches_of(endpoint).group(plan)
        return _priced(endpoint, request, plan, model)

    def _batches_of(self, endpoint: Endpoint) -> BatchProvider:
        """The endpoint's batch interface, which is not called."""
        if endpoint.name not in self.batches:
            key = next(iter(endpoint.key_ids().values()), SecretStr(""))
            adapter: BatchProvider = resolve_name(PROVIDERS[endpoint.provider].batches)(
                endpoint, key
            )
            self.batches[endpoint.name] = adapter
        return self.batches[endpoint.name]


def _priced(endpoint: Endpoint, request: RowRequest, plan: CallPlan, model: Model) -> _Candidate:
    image, worst = least_image_price(model, plan), plan.worst_cost_micro_usd
    least = None if image is None else image * plan.n
    open_quality = bool(model.qualities) and plan.quality is None
    if worst is None or model.token_prices is None:
        return _Candidate(endpoint, plan, least, worst, 0.0, open_quality)
    prices = model.token_prices
    inputs = min(len(request.images), model.max_images)
    input_price = ceil(inputs * prices.input_image_tokens * prices.image_in)
    instruction_price = len(request.instruction.encode()) * prices.text_in
    most = worst + input_price - instruction_price
    return _Candidate(endpoint, plan, least, most, prices.text_in, open_quality)


def _distribute(
    totals: Estimate, tiers: Sequence[Sequence[Endpoint]], rows: int, throughput: Throughput
) -> None:
    """Share rows among the first tier's endpoints in proportion to their throughput.

    Rows over an endpoint's daily limit go to the next tier, as the workers do; in the last tier
    they wait for the next day.
    """
    endpoints, next_tiers = tiers[0], tiers[1:]
    passed_on = 0
    for endpoint, share in _shares(endpoints, rows, throughput.calls_per_second):
        totals.calls[endpoint.name] += share
        daily = endpoint.requests_per_day
        over = min(share, max(0, totals.calls[endpoint.name] - daily)) if daily else 0
        if over:
            totals.over_daily_limit[endpoint.name] += over
        if next_tiers:
            totals.calls[endpoint.name] -= over
            passed_on += over
    if passed_on:
        _distribute(totals, next_tiers, passed_on, throughput)


def _shares(
    endpoints: Sequence[Endpoint], rows: int, rate: Callable[[Endpoint], float]
) -> Iterator[tuple[Endpoint, int]]:
    """Share rows among the endpoints in proportion to their rates."""
    rates, left = [rate(endpoint) for endpoint in endpoints], rows
    for place, endpoint in enumerate(endpoints):
        last = place == len(endpoints) - 1
        share = left if last else min(left, round(rows * rates[place] / sum(rates)))
        left -= share
        yield endpoint, share
