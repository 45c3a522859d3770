"""CloudWatch's metric math at one point in time, as far as the template uses it.

After "Metric math syntax and functions" in CloudWatch's user guide: FILL replaces a missing value,
any other operation with one is missing, SUM and MAX of a list leave it out, IF takes 0 as false.
"""

import ast
import operator
from collections.abc import Callable, Mapping, Sequence

Value = float | None  # None: no data

_COMPARISONS: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.Eq: operator.eq,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Add: operator.add,
}


def parsed(expression: str) -> ast.expr:
    return ast.parse(expression.replace(" AND ", " and "), mode="eval").body


def metrics_in(expression: str) -> set[str]:
    names = (node.id for node in ast.walk(parsed(expression)) if isinstance(node, ast.Name))
    return {name for name in names if not name.isupper()}


def evaluated(expression: str, metrics: Mapping[str, Value]) -> Value:
    return _value(parsed(expression), metrics)


def _value(node: ast.expr, metrics: Mapping[str, Value]) -> Value:
    match node:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.Name(id=name):
            return metrics[name]
        case ast.Call(func=ast.Name(id=function), args=arguments):
            return _called(function, arguments, metrics)
        case ast.BoolOp(op=ast.And(), values=parts):
            return float(all(_value(part, metrics) for part in parts))
        case ast.Compare(left=left, ops=[comparison], comparators=[right]):
            return _combined(_COMPARISONS[type(comparison)], left, right, metrics)
        case ast.BinOp(left=left, op=arithmetic, right=right):
            return _combined(_ARITHMETIC[type(arithmetic)], left, right, metrics)
    raise ValueError(f"not supported here: {ast.unparse(node)}")


def _called(function: str, arguments: Sequence[ast.expr], metrics: Mapping[str, Value]) -> Value:
    match function, arguments:
        case "FILL", [metric, replacement]:
            found = _value(metric, metrics)
            return _value(replacement, metrics) if found is None else found
        case "IF", [condition, yes, no]:
            return _value(yes if _value(condition, metrics) else no, metrics)
        case "SUM" | "MAX", [ast.List(elts=members)]:
            values = [v for v in (_value(m, metrics) for m in members) if v is not None]
            return (sum(values) if function == "SUM" else max(values)) if values else None
    raise ValueError(f"not supported here: {function}")


def _combined(
    operation: Callable[[float, float], float],
    left: ast.expr,
    right: ast.expr,
    metrics: Mapping[str, Value],
) -> Value:
    a, b = _value(left, metrics), _value(right, metrics)
    return None if a is None or b is None else float(operation(a, b))
