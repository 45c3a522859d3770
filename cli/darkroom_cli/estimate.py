"""What a job would cost and how long it would take, from its rows and the endpoints. No I/O."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil

from darkroom.calls import CallPlan
from darkroom.csv_input.reader import JobRow
from darkroom.editor.row_editor import model_for
from darkroom.endpoints import Endpoint, EndpointsSecret
from darkroom.errors import Ineligible, RowRejected
from darkroom.models.catalog import DEFAULTS, MODELS, Model, find_model, image_price
from darkroom.models.planner import plan_call
from darkroom.rows import RowRequest
from darkroom_cli.reasons import MOST_GROUPS, Failures
from darkroom_cli.speed import Pace, rate

_MOST_FITS = 2_000
_PROMPT_LIMITS = sorted({m.max_prompt_characters for m in (*MODELS, *DEFAULTS.values())})


@dataclass(slots=True)
class Estimate:
    """Sums over a job's rows. Money in micro-USD, for calls that each succeed the first time."""

    rows: int = 0
    skipped: int = 0
    invalid: Failures = field(default_factory=Failures)
    impossible: Failures = field(default_factory=Failures)  # no endpoint can take them
    pictures: int = 0
    least: int = 0  # each row at the cheapest of its first tier's endpoints, pictures alone
    expected_most: int = 0  # at the dearest of its first tier, words and thoughts included
    most: int = 0  # at its dearest endpoint of any tier
    unpriced: int = 0  # rows that may go to a model whose price is not known
    unpriced_models: set[str] = field(default_factory=set)
    calls: Counter[str] = field(default_factory=Counter)  # by endpoint, all going well
    spilled: Counter[str] = field(default_factory=Counter)  # beyond its day's limit, by endpoint
    warnings: Counter[str] = field(default_factory=Counter)

    @property
    def to_do(self) -> int:
        return self.rows - self.skipped - self.invalid.count - self.impossible.count


@dataclass(frozen=True, slots=True)
class _Option:
    """One endpoint that can take a row. Prices leave out the words of the row's instruction."""

    endpoint: Endpoint
    plan: CallPlan
    least: int | None
    most: float | None
    per_byte: float


@dataclass(frozen=True, slots=True)
class _Fit:
    """What becomes of all rows that ask alike."""

    options: tuple[_Option, ...] = ()
    first_tier: tuple[_Option, ...] = ()
    why_not: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(o.endpoint.name for o in self.options)


def estimate(rows: Iterable[JobRow], secret: EndpointsSecret, pace: Pace) -> Estimate:
    """One pass over the rows, in memory that does not grow with them."""
    told = Estimate()
    fits: dict[tuple[object, ...], _Fit] = {}
    seen: Counter[tuple[str, ...]] = Counter()
    for row in rows:
        told.rows += 1
        if row.skipped:
            told.skipped += 1
        elif isinstance(row.request, RowRejected):
            told.invalid.add(row.row, row.request.detail)
        else:
            _add(told, seen, row.row, row.request, _fit(fits, row.request, secret))
    for names, count in seen.items():
        tiers = [[e for e in tier if e.name in names] for tier in secret.tiers()]
        _spread(told, [tier for tier in tiers if tier], count, pace)
    return told


def _add(
    told: Estimate, seen: Counter[tuple[str, ...]], row: int, request: RowRequest, fit: _Fit
) -> None:
    if not fit.options:
        told.impossible.add(row, fit.why_not)
        return
    told.pictures += fit.first_tier[0].plan.n
    for warning in {w for o in fit.first_tier for w in o.plan.warnings}:
        known = warning in told.warnings or len(told.warnings) < MOST_GROUPS
        told.warnings[warning if known else "other warnings"] += 1
    told.least += min((o.least for o in fit.first_tier if o.least is not None), default=0)
    size = len(request.instruction.encode())
    told.expected_most += max((_price(o, size) for o in fit.first_tier), default=0)
    told.most += max((_price(o, size) for o in fit.options), default=0)
    unpriced = [o.plan.model for o in fit.options if o.most is None]
    told.unpriced += bool(unpriced)
    told.unpriced_models.update(unpriced[:MOST_GROUPS])
    seen[fit.names] += 1


def _price(option: _Option, instruction_bytes: int) -> int:
    """0 where it is not known: `unpriced` tells."""
    return ceil((option.most or 0) + instruction_bytes * option.per_byte)


def _fit(
    fits: dict[tuple[object, ...], _Fit], request: RowRequest, secret: EndpointsSecret
) -> _Fit:
    """Planned once for all rows that differ in words and pictures only."""
    alike = (
        *(len(request.images), request.mask is None, request.model, request.n),
        *(request.aspect_ratio, request.resolution, request.size, request.quality),
        *(request.background, (request.output_name or "").rpartition(".")[2].lower()),
        bisect_left(_PROMPT_LIMITS, len(request.instruction)),
    )
    found = fits.get(alike)
    if found is None:
        if len(fits) >= _MOST_FITS:
            fits.clear()
        found = fits[alike] = _planned(request, secret)
    return found


def _planned(request: RowRequest, secret: EndpointsSecret) -> _Fit:
    reasons: list[str] = []
    options = [o for e in secret.endpoints if (o := _option(e, request, reasons)) is not None]
    first = min((o.endpoint.tier for o in options), default=0)
    return _Fit(
        tuple(options),
        tuple(o for o in options if o.endpoint.tier == first),
        "; ".join(dict.fromkeys(reasons)),
    )


def _option(endpoint: Endpoint, request: RowRequest, reasons: list[str]) -> _Option | None:
    """The row fitted to the endpoint's model; the pictures themselves are not looked at."""
    name = model_for(request.model, endpoint)
    entry = find_model(endpoint.provider, name)
    bare = request.model_copy(update={"images": (), "mask": None})
    try:
        _check_images(entry, request)
        plan = plan_call(bare, (), None, endpoint.provider, name)
    except Ineligible as why:
        reasons.append(str(why))
        return None
    most: float | None = _most(entry, plan, len(request.images))
    per_byte = entry.token_prices.text_in if entry.token_prices and most is not None else 0.0
    if most is not None:
        most -= len(request.instruction.encode()) * per_byte
    return _Option(endpoint, plan, _least(entry, plan), most, per_byte)


def _check_images(entry: Model, request: RowRequest) -> None:
    """What the planner would see if it had the pictures."""
    if request.images and not entry.edits:
        raise Ineligible(f"{entry.name} only generates images, it cannot edit one")
    if request.mask and not entry.masks:
        raise Ineligible(f"{entry.name} does not support masks")


def _least(entry: Model, plan: CallPlan) -> int | None:
    """The pictures alone, at the cheapest that the provider may choose where the row leaves it."""
    if plan.resolution or not entry.sizes:
        prices = [image_price(entry, resolution=plan.resolution)]
    else:
        prices = [
            image_price(entry, quality=quality, size=size)
            for quality in ([plan.quality] if plan.quality else entry.qualities or [None])
            for size in ([plan.size] if plan.size else entry.sizes)
        ]
    known = [price for price in prices if price is not None]
    return min(known) * plan.n if known else None


def _most(entry: Model, plan: CallPlan, images: int) -> int | None:
    prices = entry.token_prices
    if plan.worst_cost_micro_usd is None or prices is None:
        return plan.worst_cost_micro_usd
    read = min(images, entry.max_images) * prices.input_image_tokens * prices.image_in
    return plan.worst_cost_micro_usd + ceil(read)


def _spread(told: Estimate, tiers: Sequence[Sequence[Endpoint]], count: int, pace: Pace) -> None:
    """Rows go where there is room: in proportion to what each endpoint of the tier can do.

    What is beyond an endpoint's limit for the day goes to the next tier, as the workers do; in the
    last tier it waits for the next day.
    """
    endpoints, later = tiers[0], tiers[1:]
    rates = [rate(endpoint, pace) for endpoint in endpoints]
    left, beyond = count, 0
    for place, endpoint in enumerate(endpoints):
        last = place == len(endpoints) - 1
        share = left if last else min(left, round(count * rates[place] / sum(rates)))
        left -= share
        told.calls[endpoint.name] += share
        daily = endpoint.requests_per_day
        over = min(share, max(0, told.calls[endpoint.name] - daily)) if daily else 0
        told.spilled[endpoint.name] += over
        if later:
            told.calls[endpoint.name] -= over
            beyond += over
    if beyond:
        _spread(told, later, beyond, pace)


def chosen(told: Estimate, secret: EndpointsSecret) -> Iterator[tuple[str, int]]:
    """The endpoints that would be used and their calls, the first tier first."""
    for tier in secret.tiers():
        for endpoint in tier:
            if told.calls[endpoint.name]:
                yield endpoint.name, told.calls[endpoint.name]
