"""The topic that hears of finished jobs."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_boto3_sns import SNSClient


class SnsTopic:
    def __init__(self, client: "SNSClient", arn: str) -> None:
        self._client = client
        self._arn = arn

    def publish(self, subject: str, body: str) -> None:
        """`subject`: at most 100 ASCII characters. Raises botocore's errors."""
        self._client.publish(TopicArn=self._arn, Subject=subject, Message=body)
