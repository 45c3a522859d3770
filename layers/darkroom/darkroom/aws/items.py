"""Converts dataclasses to DynamoDB items and back."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from pydantic import TypeAdapter

Item = dict[str, Any]  # attribute name -> {"S": ...}


class ItemCodec[T]:
    """Converts one dataclass. Fields with their default value are left out of the item."""

    def __init__(self, kind: type[T]) -> None:
        self._adapter = TypeAdapter(kind)

    def to_item(self, value: T) -> Item:
        fields = self._adapter.dump_python(value, mode="json", exclude_defaults=True)
        return {name: to_attribute(field) for name, field in fields.items()}

    def from_item(self, item: Mapping[str, Any]) -> T:
        """Ignores attributes that are not fields: keys, and what newer versions add."""
        return self._adapter.validate_python({k: from_attribute(v) for k, v in item.items()})


def to_attribute(value: Any) -> dict[str, Any]:  # JSON
    match value:
        case bool():
            return {"BOOL": value}
        case None:
            return {"NULL": True}
        case int() | float():
            return {"N": repr(value)}
        case str():
            return {"S": value}
        case list() | tuple():
            return {"L": [to_attribute(v) for v in value]}
        case dict():
            return {"M": {k: to_attribute(v) for k, v in value.items()}}
    raise TypeError(f"{type(value).__name__} cannot be stored in an item")


def from_attribute(attribute: Mapping[str, Any]) -> Any:  # JSON
    ((kind, value),) = attribute.items()
    match kind:
        case "NULL":
            return None
        case "N":
            return Decimal(value)  # which pydantic converts to the field's type
        case "L":
            return [from_attribute(v) for v in value]
        case "M":
            return {k: from_attribute(v) for k, v in value.items()}
    return value
