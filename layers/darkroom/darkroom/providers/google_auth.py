"""Access tokens for Google's enterprise platform, from the credentials in the endpoints secret.

A service account's key, or a workload identity federation file ("external_account"), as JSON. Their
requests go through the providers' HTTP client, so that a call's deadline bounds them too.
"""

import json
from functools import lru_cache
from threading import Lock
from typing import Any

import httpx2

from darkroom.calls import CallFailed, Outcome
from darkroom.formatting import clean_text

_SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
_refreshing = Lock()


@lru_cache(maxsize=32)
def google_credentials(text: str) -> Any:
    """google.auth's credentials, one object per text. Raises CallFailed (key_rejected)."""
    try:
        info = json.loads(text)
        return _loader(info)(info, scopes=_SCOPES)
    except Exception as error:  # noqa: BLE001 - whatever the JSON contains
        # Neither chained nor quoted: the message may contain what was typed.
        problem = f"the endpoint's credentials are not usable ({type(error).__name__})"
        raise CallFailed(Outcome.KEY_REJECTED, problem) from None


def _loader(info: dict[str, Any]) -> Any:
    """The function that makes credentials of this type; of no type that runs a program."""
    # Only endpoints on that platform need them.
    from google.auth import aws, identity_pool  # noqa: PLC0415
    from google.oauth2 import service_account  # noqa: PLC0415

    if info["type"] == "service_account":
        return service_account.Credentials.from_service_account_info
    if info["type"] == "external_account":
        of_aws = "environment_id" in info["credential_source"]
        return (aws if of_aws else identity_pool).Credentials.from_info
    raise ValueError("type is neither service_account nor external_account")


def refresh(credentials: Any, http: httpx2.Client) -> None:
    """Get an access token if there is none that is valid. Raises CallFailed."""
    from google.auth import exceptions  # noqa: PLC0415 - see google_credentials

    with _refreshing:
        if credentials.valid:
            return
        try:
            credentials.refresh(_TokenRequest(http))
        except exceptions.TransportError as error:
            problem = "no access token: Google's token service did not respond"
            raise CallFailed(Outcome.UNAVAILABLE, problem) from error
        except Exception as error:  # noqa: BLE001 - whatever the service answers
            problem = f"no access token for the endpoint's credentials: {clean_text(str(error))}"
            raise CallFailed(Outcome.KEY_REJECTED, problem) from None


class _TokenRequest:
    """google.auth.transport.Request over httpx2."""

    def __init__(self, http: httpx2.Client) -> None:
        self._http = http

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        **_: Any,
    ) -> "_TokenResponse":
        from google.auth import exceptions  # noqa: PLC0415 - see google_credentials

        try:
            response = self._http.request(method, url, content=body, headers=headers)
        except httpx2.HTTPError as error:
            failed: Any = exceptions.TransportError  # untyped
            raise failed(error) from error
        return _TokenResponse(response)


class _TokenResponse:
    """google.auth.transport.Response."""

    def __init__(self, response: httpx2.Response) -> None:
        self.status = response.status_code
        self.headers = response.headers
        self.data = response.content
