"""A budget under 500 rows a second, on virtual time, with DynamoDB's conflicts modelled."""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from botocore.exceptions import ClientError

from darkroom.aws.ledger_table import LedgerTable
from darkroom.errors import ServiceUnavailable
from darkroom.jobs import JobOptions, Run, Totals
from darkroom.rows import Claim, NotSent, RowMessage, RowRequest, RowResult, RowState
from tests.fakes.ledger import running
from tests.fakes.virtual_time import VirtualTime

ROWS_PER_SECOND = 500
WRITE_SECONDS = (0.006, 0.014)  # during which another transaction on one of the items conflicts
CALL_SECONDS = (1.0, 3.0)  # short, so that reservations and settlements are at their full rates
JOB, ROWS = "jobs/products", 2_000
RESERVED, COST = 150_000, 120_000  # micro-USD


class ModelledDynamoDB:
    """The operations and expressions that a row's ledger writes use, with transaction conflicts."""

    def __init__(self, time: VirtualTime, rng: random.Random) -> None:
        self.items = dict[tuple[str, str], dict[str, Any]]()
        self.time, self.rng = time, rng
        self._locked = set[tuple[str, str]]()

    def get_item(self, Key: Any, **_: Any) -> Any:  # noqa: N803
        self.time.sleep(0.003)
        item = self.items.get(_key(Key))
        return {"Item": item} if item else {}

    def batch_get_item(self, RequestItems: Any) -> Any:  # noqa: N803
        self.time.sleep(0.005)
        ((table, request),) = RequestItems.items()
        found = [self.items[_key(k)] for k in request["Keys"] if _key(k) in self.items]
        return {"Responses": {table: found}, "UnprocessedKeys": {}}

    def query(self, **_: Any) -> Any:
        return {"Items": []}

    def put_item(self, **put: Any) -> None:
        self._write([{"Put": put}])

    def update_item(self, **update: Any) -> None:
        self._write([{"Update": update}])

    def transact_write_items(self, TransactItems: Any) -> None:  # noqa: N803
        self._write(TransactItems)

    def _write(self, writes: Any) -> None:
        requests = [next(iter(write.values())) for write in writes]
        keys = [_key(request.get("Key") or request["Item"]) for request in requests]
        with self._lock(keys):
            codes = [
                "None" if _holds(request, self.items.get(k, {})) else "ConditionalCheckFailed"
                for k, request in zip(keys, requests, strict=True)
            ]
            if set(codes) != {"None"}:
                raise _cancelled(codes, [self.items.get(k) for k in keys])
            for k, request in zip(keys, requests, strict=True):
                self.items[k] = _after(request, self.items.get(k, {}))

    @contextmanager
    def _lock(self, keys: list[tuple[str, str]]) -> Iterator[None]:
        if self._locked.intersection(keys):
            raise _cancelled(["TransactionConflict"] * len(keys), [None] * len(keys))
        self._locked.update(keys)
        try:
            self.time.sleep(self.rng.uniform(*WRITE_SECONDS))
            yield
        finally:
            self._locked.difference_update(keys)


def _key(attributes: Any) -> tuple[str, str]:
    return attributes["job"]["S"], attributes["item"]["S"]


def _cancelled(codes: list[str], items: list[Any]) -> ClientError:
    reasons = [{"Code": c} | ({"Item": i} if i else {}) for c, i in zip(codes, items, strict=True)]
    error: Any = {
        "Error": {"Code": "TransactionCanceledException"},
        "CancellationReasons": reasons,
    }
    return ClientError(error, "TransactWriteItems")


def _holds(request: Any, item: dict[str, Any]) -> bool:
    """Evaluate the conditions that Table and BudgetTable write."""
    condition = request.get("ConditionExpression")
    if not condition:
        return True
    names = request.get("ExpressionAttributeNames", {})
    values = request.get("ExpressionAttributeValues", {})

    def value(text: str) -> Any:
        found = values.get(text) if text.startswith(":") else item.get(names.get(text, text))
        return None if found is None else _plain(found)

    kept = {"(": "(", ")": ")", "AND": "and", "OR": "or", "=": "==", ">=": ">=", "<=": "<="}
    functions: dict[str, Callable[..., Any]] = {
        "attribute_not_exists": lambda found: found is None,
        "attribute_exists": lambda found: found is not None,
        "value": value,
    }
    tokens = re.findall(r"[()]|[^\s()]+", condition)
    terms = [kept.get(t) or (t if t in functions else f"value({t!r})") for t in tokens]
    try:
        return bool(eval(" ".join(terms), {"__builtins__": {}}, functions))
    except TypeError:  # a comparison with a missing attribute is false
        return False


def _plain(attribute: Any) -> Any:
    ((kind, value),) = attribute.items()
    return float(value) if kind == "N" else value


def _after(request: Any, item: dict[str, Any]) -> dict[str, Any]:
    if "Item" in request:
        return dict(request["Item"])
    names = request.get("ExpressionAttributeNames", {})
    values = request["ExpressionAttributeValues"]
    item = item | request["Key"]
    expression = request["UpdateExpression"].partition(" REMOVE ")[0]
    action, _, changes = expression.partition(" ")
    for change in changes.split(", "):
        name, value = change.replace(" = ", " ").split()
        name = names.get(name, name)
        if action == "ADD":
            number = int(item.get(name, {"N": "0"})["N"]) + int(values[value]["N"])
            item[name] = {"N": str(number)}
        else:
            item[name] = values[value]
    return item


@dataclass
class Load:
    """Rows that workers edit at ROWS_PER_SECOND, and what they have spent or reserved."""

    budget: int  # micro-USD
    time: VirtualTime = field(default_factory=VirtualTime)
    rng: random.Random = field(default_factory=lambda: random.Random(5))
    spent: int = 0
    most_spent: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        database: Any = ModelledDynamoDB(self.time, self.rng)
        self.ledger = LedgerTable(
            database,
            "ledger",
            now=lambda: self.time.at,
            sleep=self.time.sleep,
            rng=self.rng.random,
        )

    def run(self, rows: int) -> None:
        self.time.start(lambda: self._begin(rows))
        self.time.run()

    def _begin(self, rows: int) -> None:
        options = JobOptions(budget_usd=self.budget / 1e6)
        run = self.ledger.start(running(JOB, options=options), 90.0)
        assert run is not None
        self.ledger.finish_split(run, Totals(rows=rows, queued=rows), ())
        for row in range(rows):
            self.time.start(partial(self._edit, row, run), row / ROWS_PER_SECOND)

    def _edit(self, row: int, run: Run) -> None:
        request = RowRequest(instruction="Make it red")
        message = RowMessage(
            job=JOB, run=run.run, row=row, key=f"{row:06d}", base="s3://in/", request=request
        )
        sent = self._repeat(lambda: self._send(message, run), delay_seconds=120.0)
        if isinstance(sent, NotSent):
            self.outcomes[sent.value] += 1
            return
        self.spent += RESERVED
        self.most_spent = max(self.most_spent, self.spent)
        self.time.sleep(self.rng.uniform(*CALL_SECONDS))
        result = RowResult(RowState.SUCCEEDED, cost_micro_usd=COST)
        assert self._repeat(lambda: self.ledger.settle(sent, result), delay_seconds=15.0)
        self.spent -= RESERVED - COST
        self.outcomes["succeeded"] += 1

    def _send(self, message: RowMessage, run: Run) -> Claim | NotSent:
        claim = self.ledger.claim(message, run, f"{message.key}/{self.time.at}", 90.0)
        assert isinstance(claim, Claim)
        return self.ledger.mark_sent(claim, "gemini", reserve=RESERVED, limit=self.budget)

    def _repeat[T](self, step: Callable[[], T], delay_seconds: float) -> T:
        while True:
            try:
                return step()
            except ServiceUnavailable:
                self.outcomes["repeated"] += 1
                self.time.sleep(delay_seconds)


def test_500_rows_a_second_do_not_wait_for_a_budget_that_has_room() -> None:
    load = Load(budget=2 * ROWS * RESERVED)
    load.run(ROWS)
    assert load.ledger.committed(JOB) == ROWS * COST
    assert load.outcomes == {"succeeded": ROWS}


def test_500_rows_a_second_never_exceed_a_budget_that_runs_out() -> None:
    """Its last rows meet at one item: many return to the queue before they get an answer."""
    load = Load(budget=ROWS * RESERVED // 2)
    load.run(ROWS)
    assert ROWS // 2 <= load.outcomes["succeeded"] <= load.budget // COST
    assert load.most_spent <= load.budget
    assert load.ledger.committed(JOB) == load.outcomes["succeeded"] * COST
    assert load.outcomes["repeated"] <= ROWS / 2
