"""The environment of a function as a typed value, parsed once before any work."""

import os
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from darkroom.errors import ConfigurationError
from darkroom.formatting import describe_validation


class Settings(BaseModel):
    """What template.yaml sets on every function, names in upper case."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=str.upper, validate_by_name=True
    )

    stack_name: str
    input_bucket: str
    results_bucket: str
    ledger_table: str
    endpoints_table: str
    endpoints_secret_arn: str
    rows_queue_url: str
    batch_rows_queue_url: str
    dead_letter_queue_url: str
    lost_events_queue_url: str
    jobs_topic_arn: str
    splitter_function: str  # with its alias, as the next
    reporter_function: str
    collector_function: str
    rows_per_worker: int = Field(default=10, ge=1, le=10)
    aws_lambda_function_memory_size: int = 1536  # MB; set by Lambda
    allowed_image_hosts: str = ""  # comma list; empty: any public host
    trusted_image_hosts: str = ""  # comma list; allowed over http and at private addresses too
    image_object_arns: str = ""  # comma list; objects of other buckets that rows may name
    results_retention_days: int = Field(default=0, ge=0)  # 0: results are kept
    confine_rows_to_prefix: bool = False  # objects only under the CSV's folder
    on_unknown_outcome: Literal["retry", "fail"] = "retry"

    @property
    def image_buckets(self) -> tuple[str, ...]:
        """Buckets whose objects rows may name: the stack's own and those of `image_object_arns`."""
        arns = [arn.strip() for arn in self.image_object_arns.split(",") if arn.strip()]
        others = (arn.rpartition(":::")[2].partition("/")[0] for arn in arns)
        return self.input_bucket, self.results_bucket, *others

    @property
    def confined_buckets(self) -> tuple[str, ...]:
        """Buckets in which rows may name only objects under their CSV's folder."""
        return (self.input_bucket, self.results_bucket) if self.confine_rows_to_prefix else ()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Raises ConfigurationError that names the variable."""
        try:
            return cls.model_validate(environment)
        except ValidationError as error:
            raise ConfigurationError(describe_validation(error)) from error
