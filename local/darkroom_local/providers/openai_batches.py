"""OpenAI's `/files` and `/batches`, for requests to make and edit images.

Sources: openai 3.52 (batch_create_params, types.Batch, file_create_params), read on 2026-11-21, and
https://developers.openai.com/api/docs/guides/batch. The codes of a failed validation are quoted in
public repositories; OpenAI documents none.
"""

import json
import re
from http import HTTPStatus
from typing import Any, ClassVar

from darkroom_local.providers.api import MIB, RequestRejected
from darkroom_local.providers.batches import BatchStore, SimulatedBatch, StoredFile
from darkroom_local.providers.config import BatchFaultKind
from darkroom_local.providers.http import Request, Response, parse_upload
from darkroom_local.providers.openai_api import OpenAIApi, openai_error

_PATH = re.compile(r"(?:/v1)?/(files|batches)(?:/([\w-]+)(?:/(\w+))?)?")
_URLS = {"/v1/images/edits", "/v1/images/generations"}
_CREATE_FIELDS = {
    *("completion_window", "endpoint", "input_file_id", "metadata", "output_expires_after"),
}
_MAX_FILE_BYTES, _MAX_REQUESTS = 200 * MIB, 50_000
_PAGE = (1, 100)
_EXPIRY_SECONDS = range(3600, 30 * 86_400 + 1)


class OpenAIBatchApi:
    error_file = True
    keeps_order = False
    limits_when_created = False
    api = OpenAIApi()
    # Of a batch, by its requests: https://developers.openai.com/api/docs/guides/batch.
    _unanswered: ClassVar = {
        "expired": ("batch_expired", "before the completion window expired."),
        "cancelled": ("batch_cancelled", "because the batch was cancelled."),
    }

    def __init__(self, store: BatchStore) -> None:
        self._store = store

    def handles(self, path: str) -> bool:
        return _PATH.fullmatch(path) is not None

    def handle(self, request: Request, path: str) -> Response:
        """Raises RequestRejected."""
        match = _PATH.fullmatch(path)
        kind, name, action = match.groups() if match else ("", None, None)
        if kind == "files":
            return self._files(request, name, action)
        return self._batches(request, name, action)

    def _files(self, request: Request, name: str | None, action: str | None) -> Response:
        if request.method == "POST" and name is None:
            return self._upload(request)
        file = self._store.files.get(name or "")
        if file is None:
            raise _rejected(404, f"No such File object: {name}", "id")
        match request.method, action:
            case "GET", "content":
                return self._store.download(file, request)
            case "GET", None:
                return Response.json(_file_json(file))
            case "DELETE", None:
                self._store.delete_file(file)
                return Response.json({"id": file.id, "object": "file", "deleted": True})
        raise _rejected(405, "Method not allowed", None)

    def _upload(self, request: Request) -> Response:
        try:
            form = parse_upload(request.body, request.headers.get("content-type", ""))
        except ValueError as error:
            raise _rejected(400, "Invalid multipart form body.", "body") from error
        fields, part = form
        known = {"purpose", "expires_after[anchor]", "expires_after[seconds]"}
        if unknown := sorted(fields.keys() - known):
            raise _rejected(400, f"Unknown parameter: '{unknown[0]}'.", unknown[0])
        if fields.get("purpose") not in ("batch", "vision", "user_data"):
            raise _rejected(400, "Invalid value for 'purpose'.", "purpose")
        seconds = fields.get("expires_after[seconds]", "3600")
        if int(seconds) not in _EXPIRY_SECONDS:
            raise _rejected(400, "Invalid 'expires_after.seconds'.", "expires_after.seconds")
        if part is None or not part.data:
            raise _rejected(400, "Missing required parameter: 'file'.", "file")
        file = self._store.new_file("file-", part.filename or "", fields["purpose"])
        file.path.write_bytes(part.data)
        return Response.json(_file_json(file))

    def _batches(self, request: Request, name: str | None, action: str | None) -> Response:
        match request.method, name, action:
            case "POST", None, None:
                return self._create(request)
            case "GET", None, None:
                return self._list(request)
        batch = self._store.batches.get(name or "")
        if batch is None:
            raise _rejected(404, f"No batch found with id '{name}'.", None)
        match request.method, action:
            case "GET", None:
                return Response.json(self._json(batch))
            case "POST", "cancel":
                if batch.ended:
                    problem = f"Cannot cancel a batch with status '{batch.state}'."
                    raise _rejected(409, problem, None)
                self._store.cancel(batch)
                return Response.json(self._json(batch))
        raise _rejected(405, "Method not allowed", None)

    def _create(self, request: Request) -> Response:
        fields = _parsed(request)
        if unknown := sorted(fields.keys() - _CREATE_FIELDS):
            raise _rejected(400, f"Unknown parameter: '{unknown[0]}'.", unknown[0])
        if fields.get("completion_window") != "24h":
            raise _rejected(400, "Invalid value for 'completion_window'.", "completion_window")
        if fields.get("endpoint") not in _URLS:
            raise _rejected(400, "Invalid value for 'endpoint'.", "endpoint")
        metadata = fields.get("metadata") or {}
        if len(metadata) > 16 or any(len(k) > 64 or len(v) > 512 for k, v in metadata.items()):  # noqa: PLR2004
            raise _rejected(400, "Invalid 'metadata'.", "metadata")
        expiry = fields.get("output_expires_after") or {"anchor": "created_at", "seconds": 3600}
        if expiry["anchor"] != "created_at" or expiry["seconds"] not in _EXPIRY_SECONDS:
            raise _rejected(400, "Invalid 'output_expires_after'.", "output_expires_after")
        file = self._store.files.get(str(fields.get("input_file_id")))
        if file is None or file.purpose != "batch":
            raise _rejected(400, "Invalid 'input_file_id'.", "input_file_id")
        if file.size > _MAX_FILE_BYTES:
            problem = f"The batch input file is larger than the {_MAX_FILE_BYTES} maximum."
            raise _rejected(413, problem, "input_file_id")
        batch = SimulatedBatch(
            self._store.next_id("batch_"), "", fields["endpoint"], file, metadata=metadata
        )
        try:
            told = self._store.submit(batch, self)
        except ConnectionError:
            return openai_error(503, "The engine is currently overloaded.", kind="server_error")
        return Response.json(self._json(batch)) if told else Response(drop=True)

    def _list(self, request: Request) -> Response:
        limit = int(request.query.get("limit", "20"))
        if not _PAGE[0] <= limit <= _PAGE[1]:
            raise _rejected(400, "Invalid 'limit'.", "limit")
        batches = self._store.listed()
        ids = [batch.id for batch in batches]
        after = request.query.get("after")
        start = ids.index(after) + 1 if after in ids else 0
        page = batches[start : start + limit]
        more = len(batches) > start + limit
        data = [self._json(batch) for batch in page]
        return Response.json({"object": "list", "data": data, "has_more": more})

    def _json(self, batch: SimulatedBatch) -> dict[str, Any]:
        created = int(batch.created)
        errors = {"object": "list", "data": batch.errors} if batch.errors else None
        return {
            "id": batch.id,
            "object": "batch",
            "endpoint": batch.operation,
            "errors": errors,
            "input_file_id": batch.input.id,
            "completion_window": "24h",
            "status": batch.state,
            "output_file_id": batch.output and batch.output.id,
            "error_file_id": batch.error_output and batch.error_output.id,
            "created_at": created,
            "expires_at": created + 86_400,
            "request_counts": {
                "total": batch.requests,
                "completed": batch.succeeded,
                "failed": batch.failed,
            },
            "metadata": batch.metadata or None,
        }

    # --- BatchFormat ------------------------------------------------------------------------------

    def validate(self, batch: SimulatedBatch) -> list[dict[str, Any]]:
        if failed := batch.faults.get(BatchFaultKind.FAILED_VALIDATION):
            if failed.message:
                return [_invalid_line(None, "invalid_request", failed.message)]
            return [_invalid_line(1, "invalid_json_line", "This line is not parseable as JSON.")]
        errors: list[dict[str, Any]] = []
        ids: set[str] = set()
        models: set[str] = set()
        with batch.input.path.open("rb") as file:
            for number, text in enumerate(file, start=1):
                problem = _problem_of_line(text, batch.operation, ids, models)
                errors += [_invalid_line(number, *problem)] if problem else []
                batch.requests = number
        if batch.requests > _MAX_REQUESTS:
            errors.append(_invalid_line(None, "too_many_requests", "Over 50000 requests."))
        limited = BatchFaultKind.ENQUEUED_LIMIT in batch.faults
        if limited or self._store.enqueued_too_much(0):
            message = "Enqueued token limit reached for gpt-image in organization org-1. Limit: 1."
            errors.append(_invalid_line(None, "token_limit_exceeded", message))
        return errors

    def request(self, line: dict[str, Any], batch: SimulatedBatch) -> tuple[Request, str]:
        headers = {"content-type": "application/json", "authorization": "Bearer in-batch"}
        body = json.dumps(line["body"]).encode()
        return Request("POST", batch.operation, {}, headers, body, 0, 0), batch.operation

    def answer(self, line: dict[str, Any], response: Response) -> dict[str, Any]:
        custom_id = line["custom_id"]
        answered = {
            "status_code": response.status,
            "request_id": "req_simulated",
            "body": json.loads(response.body),
        }
        return {"id": "batch_req_1", "custom_id": custom_id, "response": answered, "error": None}

    def unanswered(self, line: dict[str, Any], state: str) -> dict[str, Any]:
        code, why = self._unanswered[state]
        error = {"code": code, "message": f"This request could not be executed {why}"}
        custom_id = line["custom_id"]
        return {"id": "batch_req_1", "custom_id": custom_id, "response": None, "error": error}


def _problem_of_line(
    text: bytes, url: str, ids: set[str], models: set[str]
) -> tuple[str, str] | None:
    """The code and message of the first problem; adds to the ids and models of earlier lines."""
    try:
        line = json.loads(text)
        fields, custom_id, body = line.keys(), line["custom_id"], line["body"]
        model = body["model"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return "invalid_json_line", "This line is not parseable as a request."
    duplicate = custom_id in ids
    ids.add(custom_id)
    models.add(model)
    odd = fields != {"custom_id", "method", "url", "body"} or line["method"] != "POST"
    problems = (
        (odd, "invalid_request", "Unknown or missing field."),
        (line["url"] != url, "mismatched_url", "The URL is not that of the batch."),
        (duplicate, "duplicate_custom_id", f"The custom_id '{custom_id}' is a duplicate."),
        (len(models) > 1, "mismatched_model", "All requests must have the same model."),
        (not _is_known(model), "model_not_found", f"The model '{model}' is not supported."),
    )
    return next(((code, message) for found, code, message in problems if found), None)


def _is_known(model: str) -> bool:
    try:
        OpenAIApi().rules_for(model)
    except RequestRejected:
        return False
    return True


def _invalid_line(number: int | None, code: str, message: str) -> dict[str, Any]:
    return {"code": code, "line": number, "message": message, "param": None}


def _file_json(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size,
        "created_at": int(file.created),
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
    }


def _parsed(request: Request) -> dict[str, Any]:
    try:
        fields = json.loads(request.body)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise _rejected(400, "We could not parse the JSON body of your request.", "body")
    return fields


def _rejected(status: int, message: str, param: str | None) -> RequestRejected:
    code = "not_found" if status == HTTPStatus.NOT_FOUND else None
    return RequestRejected(openai_error(status, message, code=code, param=param))
