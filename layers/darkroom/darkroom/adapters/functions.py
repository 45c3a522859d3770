"""Starts another function of the stack and does not wait for it."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from darkroom.errors import ServiceUnavailable

if TYPE_CHECKING:
    from mypy_boto3_lambda import LambdaClient


class LambdaFunctions:
    def __init__(self, client: "LambdaClient") -> None:
        self._client = client

    def start(self, function: str, event: Mapping[str, object]) -> None:
        """Invoke `function` asynchronously. Raises ServiceUnavailable: it may be tried again."""
        try:
            self._client.invoke(
                FunctionName=function, InvocationType="Event", Payload=json.dumps(event)
            )
        except (ClientError, BotoCoreError) as error:
            raise ServiceUnavailable(f"The function {function} cannot be started") from error
