"""A function's environment as a typed value, parsed once before any work."""

import os
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from darkroom.errors import ConfigurationError
from darkroom.formatting import describe_validation


class Settings(BaseModel):
    """What template.yaml sets on every function, names in upper case."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    stack_name: str
    input_bucket: str
    results_bucket: str
    ledger_table: str
    endpoints_table: str
    endpoints_secret_arn: str
    rows_queue_url: str
    dead_letter_queue_url: str
    jobs_topic_arn: str
    reporter_function: str
    rows_per_worker: int = Field(default=4, ge=1, le=10)
    allowed_image_hosts: str = ""  # comma list; empty: any public host
    trusted_image_hosts: str = ""  # comma list; also over http and at private addresses
    image_object_arns: str = ""  # comma list; objects of other buckets that rows may name
    on_unknown_outcome: Literal["retry", "fail"] = "retry"

    @property
    def image_buckets(self) -> tuple[str, ...]:
        """Buckets that rows may name images in: the stack's own, and those of the parameter."""
        arns = [arn.strip() for arn in self.image_object_arns.split(",") if arn.strip()]
        others = (arn.rpartition(":::")[2].partition("/")[0] for arn in arns)
        return self.input_bucket, self.results_bucket, *others

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Raises ConfigurationError that names the variable."""
        values = {k.lower(): v for k, v in environment.items() if k.lower() in cls.model_fields}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            names = {str(problem["loc"][0]) for problem in error.errors() if problem["loc"]}
            text = describe_validation(error)
            for name in names:
                text = text.replace(name, name.upper())
            raise ConfigurationError(text) from error
