"""Creates DynamoDB tables with the keys of template.yaml."""

from typing import Any

KEYS = {"ledger": {"job": "HASH", "item": "RANGE"}, "endpoints": {"endpoint": "HASH"}}


def create_table(dynamodb: Any, kind: str, name: str) -> None:
    """`dynamodb` is a client; `kind` one of KEYS."""
    dynamodb.create_table(
        TableName=name,
        KeySchema=[{"AttributeName": k, "KeyType": role} for k, role in KEYS[kind].items()],
        AttributeDefinitions=[{"AttributeName": k, "AttributeType": "S"} for k in KEYS[kind]],
        BillingMode="PAY_PER_REQUEST",
    )
