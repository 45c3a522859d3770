"""The functions' environment variables as typed settings."""

import pytest

from darkroom.errors import ConfigurationError
from darkroom.settings import Settings

ENVIRONMENT = {
    "STACK_NAME": "darkroom",
    "INPUT_BUCKET": "in",
    "RESULTS_BUCKET": "out",
    "LEDGER_TABLE": "ledger",
    "ENDPOINTS_TABLE": "endpoints",
    "ENDPOINTS_SECRET_ARN": "arn",
    "ROWS_QUEUE_URL": "q",
    "DEAD_LETTER_QUEUE_URL": "dlq",
    "JOBS_TOPIC_ARN": "topic",
    "REPORTER_FUNCTION": "reporter",
    "ROWS_PER_WORKER": "7",
    "PATH": "/usr/bin",
}


def test_variables_become_typed_values() -> None:
    settings = Settings.from_environment(ENVIRONMENT)
    assert (settings.rows_per_worker, settings.on_unknown_outcome) == (7, "retry")


def test_a_missing_variable_is_named() -> None:
    without = {k: v for k, v in ENVIRONMENT.items() if k != "LEDGER_TABLE"}
    with pytest.raises(ConfigurationError, match="LEDGER_TABLE"):
        Settings.from_environment(without)


def test_an_invalid_value_is_named() -> None:
    with pytest.raises(ConfigurationError, match="ROWS_PER_WORKER"):
        Settings.from_environment({**ENVIRONMENT, "ROWS_PER_WORKER": "many"})
