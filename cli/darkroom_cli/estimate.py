"""What a job would cost and how long it would take, from its rows and the endpoints. No I/O."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil

from darkroom import limiter
from darkroom.calls import CallPlan
from darkroom.capabilities import find, picture_price
from darkroom.csv_rows import JobRow
from darkroom.endpoint_state import SECOND
from darkroom.endpoints import Endpoint, EndpointsSecret
from darkroom.errand import Ineligible
from darkroom.errors import RowRejected
from darkroom.model_types import Model
from darkroom.planning import plan_call
from darkroom.row_errand import model_for
from darkroom.rows import RowRequest

DAY_SECONDS = 86_400
RETENTION_SECONDS = 14 * DAY_SECONDS  # what SQS keeps a message at most, and the template asks for


@dataclass(frozen=True, slots=True)
class Pace:
    """What bounds the speed beside the endpoints' own limits."""

    call_seconds: float  # how long a call is taken to last
    workers: int | None = None  # rows in work at once, over all processes


@dataclass(slots=True)
class Estimate:
    """Sums over a job's rows. Money in micro-USD, for calls that each succeed the first time."""

    rows: int = 0
    skipped: int = 0
    invalid: list[tuple[int, str]] = field(default_factory=list)  # (row, sentence)
    impossible: list[tuple[int, str]] = field(default_factory=list)  # no endpoint can take them
    pictures: int = 0
    least: int = 0  # each row at the cheapest of its first tier's endpoints, pictures alone
    most: int = 0  # each row at its dearest endpoint of any tier, words and thoughts included
    unpriced: int = 0  # rows that may go to a model whose price is not known
    calls: Counter[str] = field(default_factory=Counter)  # by endpoint, all going well
    warnings: Counter[str] = field(default_factory=Counter)

    @property
    def to_do(self) -> int:
        return self.rows - self.skipped - len(self.invalid) - len(self.impossible)


@dataclass(frozen=True, slots=True)
class _Option:
    """One endpoint that can take a row."""

    endpoint: Endpoint
    plan: CallPlan
    least: int | None
    most: int | None


def estimate(rows: Iterable[JobRow], secret: EndpointsSecret, pace: Pace) -> Estimate:
    """One pass over the rows; only what fails is kept."""
    told = Estimate()
    seen: dict[tuple[str, ...], int] = Counter()
    for row in rows:
        told.rows += 1
        if row.skipped:
            told.skipped += 1
        elif isinstance(row.asked, RowRejected):
            told.invalid.append((row.row, row.asked.detail))
        else:
            _add(told, seen, row.row, row.asked, secret)
    for names, count in seen.items():
        _spread(told.calls, [e for e in secret.endpoints if e.name in names], count, pace)
    return told


def _add(
    told: Estimate,
    seen: dict[tuple[str, ...], int],
    row: int,
    request: RowRequest,
    secret: EndpointsSecret,
) -> None:
    reasons: list[str] = []
    options = [o for e in secret.endpoints if (o := _option(e, request, reasons)) is not None]
    if not options:
        told.impossible.append((row, "; ".join(dict.fromkeys(reasons))))
        return
    first = min(o.endpoint.tier for o in options)
    first_tier = [o for o in options if o.endpoint.tier == first]
    told.pictures += first_tier[0].plan.n
    told.warnings.update({w for o in first_tier for w in o.plan.warnings})
    told.least += min((o.least for o in first_tier if o.least is not None), default=0)
    told.most += max((o.most for o in options if o.most is not None), default=0)
    told.unpriced += any(o.most is None for o in options)
    seen[tuple(o.endpoint.name for o in first_tier)] += 1


def _option(endpoint: Endpoint, request: RowRequest, reasons: list[str]) -> _Option | None:
    """The row fitted to the endpoint's model; the pictures themselves are not looked at."""
    name = model_for(request.model, endpoint)
    entry = find(endpoint.provider, name)
    bare = request.model_copy(update={"images": (), "mask": None})
    try:
        _check_images(entry, request)
        plan = plan_call(bare, (), None, endpoint.provider, name)
    except Ineligible as why:
        reasons.append(str(why))
        return None
    return _Option(endpoint, plan, _least(entry, plan), _most(entry, plan, len(request.images)))


def _check_images(entry: Model, request: RowRequest) -> None:
    """What the planner would see if it had the pictures."""
    if request.images and not entry.edits:
        raise Ineligible(f"{entry.name} makes new pictures only, it cannot edit one")
    if request.mask and not entry.masks:
        raise Ineligible(f"{entry.name} takes no mask")


def _least(entry: Model, plan: CallPlan) -> int | None:
    """The pictures alone, at the cheapest that the provider may choose where the row leaves it."""
    if plan.resolution or not entry.sizes:
        prices = [picture_price(entry, quality=plan.resolution or "1K")]
    else:
        prices = [
            picture_price(entry, quality=quality, size=size)
            for quality in ([plan.quality] if plan.quality else entry.qualities or [None])
            for size in ([plan.size] if plan.size else entry.sizes)
        ]
    known = [price for price in prices if price is not None]
    return min(known) * plan.n if known else None


def _most(entry: Model, plan: CallPlan, images: int) -> int | None:
    if plan.worst_cost_micro_usd is None or entry.prices is None:
        return plan.worst_cost_micro_usd
    read = min(images, entry.max_images) * entry.prices.input_image_tokens * entry.prices.image_in
    return plan.worst_cost_micro_usd + ceil(read)


def _spread(calls: Counter[str], endpoints: Sequence[Endpoint], count: int, pace: Pace) -> None:
    """Rows of a tier go where there is room: in proportion to what each endpoint can do."""
    rates = [rate(endpoint, pace) for endpoint in endpoints]
    total = sum(rates)
    left = count
    for endpoint, one in zip(endpoints[:-1], rates[:-1], strict=True):
        share = round(count * one / total)
        calls[endpoint.name] += share
        left -= share
    calls[endpoints[-1].name] += left


def rate(endpoint: Endpoint, pace: Pace) -> float:
    """Calls per second that the endpoint's limits let through, its daily one aside."""
    limits = limiter.limits_of(endpoint)
    bounds = [pace.workers / pace.call_seconds] if pace.workers else []
    if limits.interval:
        bounds.append(SECOND / limits.interval)
    if limits.max_in_flight:
        bounds.append(limits.max_in_flight / pace.call_seconds)
    return min(bounds, default=1_000.0)


def seconds(told: Estimate, secret: EndpointsSecret, pace: Pace) -> float:
    """Until the last row is done: the slowest endpoint's share, or what the workers can carry."""
    needed = [_endpoint_seconds(e, told.calls[e.name], pace) for e in secret.endpoints]
    if pace.workers:
        needed.append(sum(told.calls.values()) * pace.call_seconds / pace.workers)
    return max(needed, default=0.0)


def _endpoint_seconds(endpoint: Endpoint, calls: int, pace: Pace) -> float:
    if not calls:
        return 0.0
    daily = endpoint.requests_per_day
    if daily and calls > daily:
        days = ceil(calls / daily) - 1
        return days * DAY_SECONDS + (calls - days * daily) / rate(endpoint, pace)
    return calls / rate(endpoint, pace)


def chosen(told: Estimate, secret: EndpointsSecret) -> Iterator[tuple[str, int]]:
    """The endpoints that would be used and their calls, the first tier first."""
    for tier in secret.tiers():
        for endpoint in tier:
            if told.calls[endpoint.name]:
                yield endpoint.name, told.calls[endpoint.name]
