"""Gemini's files (resumable uploads, downloads) and batches of `generateContent` requests.

Sources: google-genai 3.4 (files, batches), https://ai.google.dev/gemini-api/docs/batch-api and
https://ai.google.dev/api/batch-api, read on 2026-11-21.
"""

import json
import re
from datetime import UTC, datetime
from typing import Any

from darkroom_local.providers.api import RequestRejected
from darkroom_local.providers.batches import BatchStore, SimulatedBatch, StoredFile
from darkroom_local.providers.config import BatchFaultKind
from darkroom_local.providers.gemini_api import (
    GeminiApi,
    camel_case,
    check_names,
    gemini_error,
    gemini_invalid,
)
from darkroom_local.providers.http import Request, Response

_PATHS = re.compile(
    r"/(?P<upload>upload)/v1\w*/files(?:/(?P<session>\w+))?"
    r"|/(?P<download>download)/v1\w*/files/(?P<downloaded>[\w-]+):download"
    r"|/v1\w*/files/(?P<file>[\w-]+)"
    r"|/v1\w*/models/(?P<model>[^/:]+):batchGenerateContent"
    r"|/v1\w*/(?P<batches>batches)(?:/(?P<batch>[\w-]+))?(?P<cancel>:cancel)?"
)
_MAX_FILE_BYTES = 2_000_000_000
_MAX_PAGE = 1000
_STATES = {
    "validating": "PENDING",
    "in_progress": "RUNNING",
    "cancelling": "RUNNING",
    "completed": "SUCCEEDED",
}


class GeminiBatchApi:
    error_file = False
    keeps_order = True  # "written in the same order as the input requests" (BatchJobDestination)
    unanswered = None  # no results file of a batch that expired or was cancelled
    limits_when_created = True
    api = GeminiApi()

    def __init__(self, store: BatchStore) -> None:
        self._store = store

    def handles(self, path: str) -> bool:
        return _PATHS.fullmatch(path) is not None

    def handle(self, request: Request, path: str) -> Response:
        """Raises RequestRejected."""
        found = _PATHS.fullmatch(path)
        parts = found.groupdict() if found else {}
        if parts.get("upload"):
            return self._upload(request, parts["session"])
        if parts.get("download"):
            return self._store.download(self._file(parts["downloaded"]), request)
        if parts.get("file"):
            return self._one_file(request, self._file(parts["file"]))
        if parts.get("model"):
            return self._create(request, str(parts["model"]))
        return self._batches(request, parts.get("batch"), cancel=bool(parts.get("cancel")))

    def _file(self, name: str | None) -> StoredFile:
        """Of a file that does not exist the real API says that access is denied."""
        file = self._store.files.get(name or "")
        if file is None:
            message = f"You do not have permission to access the File {name} or it may not exist."
            raise RequestRejected(gemini_error(403, "PERMISSION_DENIED", message))
        return file

    def _upload(self, request: Request, session: str | None) -> Response:
        headers = request.headers
        if session is None:
            length = int(headers.get("x-goog-upload-header-content-length", "0"))
            if headers.get("x-goog-upload-command") != "start" or not length:
                raise gemini_invalid("An upload starts with the command start and a length.")
            if length > _MAX_FILE_BYTES:
                raise gemini_invalid("The file is larger than 2 GB.")
            body = json.loads(request.body or b"{}", object_hook=camel_case)
            fields = body.get("file") or {}
            check_names(fields, {"displayName", "mimeType", "name", "sizeBytes"})
            file = self._store.new_file("f", fields.get("displayName", ""), "upload")
            file.expected = length
            url = f"http://{headers['host']}{request.path}/{file.id}"
            return Response.json({}, headers={"x-goog-upload-url": url})
        file = self._file(session)
        if int(headers.get("x-goog-upload-offset", "-1")) != file.size:
            raise gemini_invalid("The offset is not where the last piece ended.")
        with file.path.open("ab") as out:
            out.write(request.body)
        if "finalize" not in headers.get("x-goog-upload-command", ""):
            return Response.json({}, headers={"x-goog-upload-status": "active"})
        if file.size != file.expected:
            raise gemini_invalid("The upload is not complete.")
        answer = {"file": _file_json(file)}
        return Response.json(answer, headers={"x-goog-upload-status": "final"})

    def _one_file(self, request: Request, file: StoredFile) -> Response:
        if request.method == "DELETE":
            self._store.delete_file(file)
            return Response.json({})
        return Response.json(_file_json(file))

    def _create(self, request: Request, model: str) -> Response:
        self.api.rules_for(model)
        try:
            fields = json.loads(request.body, object_hook=camel_case)["batch"]
            source = fields["inputConfig"]
        except (ValueError, KeyError, TypeError) as error:
            raise gemini_invalid("Invalid JSON payload received.") from error
        check_names(fields, {"displayName", "inputConfig", "priority", "webhookConfig"})
        check_names(source, {"fileName"})
        if not fields.get("displayName"):
            raise gemini_invalid("batch.display_name is required.")
        file = self._file(str(source.get("fileName")).removeprefix("files/"))
        name = fields["displayName"]
        batch = SimulatedBatch(self._store.next_id("b"), name, model, file)
        too_much = self._store.enqueued_too_much(_count_lines(file))
        if too_much or self._store.draw(BatchFaultKind.ENQUEUED_LIMIT) is not None:
            return self.api.rate_limited("none", 0, "minute")
        try:
            told = self._store.submit(batch, self)
        except ConnectionError:
            return gemini_error(503, "UNAVAILABLE", "The service is currently unavailable.")
        return Response.json(self._json(batch)) if told else Response(drop=True)

    def _batches(self, request: Request, name: str | None, *, cancel: bool) -> Response:
        if name is None:
            return self._list(request)
        batch = self._store.batches.get(name)
        if batch is None:
            raise RequestRejected(gemini_error(404, "NOT_FOUND", f"batches/{name} is not found."))
        if cancel:
            if batch.ended:
                message = "The batch has ended already."
                raise RequestRejected(gemini_error(400, "FAILED_PRECONDITION", message))
            self._store.cancel(batch)
            return Response.json({})
        return Response.json(self._json(batch))

    def _list(self, request: Request) -> Response:
        size = int(request.query.get("pageSize", "50"))
        if not 1 <= size <= _MAX_PAGE:
            raise gemini_invalid("page_size is out of range.")
        batches = self._store.listed()
        start = int(request.query.get("pageToken", "0"))
        body: dict[str, Any] = {
            "operations": [self._json(batch) for batch in batches[start : start + size]]
        }
        if len(batches) > start + size:
            body["nextPageToken"] = str(start + size)
        return Response.json(body)

    def _json(self, batch: SimulatedBatch) -> dict[str, Any]:
        state = _STATES.get(batch.state, batch.state.upper())
        created = datetime.fromtimestamp(batch.created, UTC).isoformat().replace("+00:00", "Z")
        pending = batch.requests - batch.succeeded - batch.failed
        metadata: dict[str, Any] = {
            "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch",
            "name": f"batches/{batch.id}",
            "model": f"models/{batch.operation}",
            "displayName": batch.name,
            "state": f"BATCH_STATE_{state}",
            "createTime": created,
            "updateTime": created,
            "inputConfig": {"fileName": f"files/{batch.input.id}"},
            "batchStats": {
                "requestCount": str(batch.requests),
                "successfulRequestCount": str(batch.succeeded),
                "failedRequestCount": str(batch.failed),
                "pendingRequestCount": str(pending),
            },
        }
        operation: dict[str, Any] = {"name": f"batches/{batch.id}", "metadata": metadata}
        if batch.output is not None:
            output = {"responsesFile": f"files/{batch.output.id}"}
            metadata["output"] = output
            operation["response"] = output
        if batch.ended:
            operation["done"] = True
        if batch.errors:
            operation["error"] = batch.errors[0]
        return operation

    # --- BatchFormat ------------------------------------------------------------------------------

    def validate(self, batch: SimulatedBatch) -> list[dict[str, Any]]:
        if failed := batch.faults.get(BatchFaultKind.FAILED_VALIDATION):
            return [{"code": 3, "message": failed.message or "The input file cannot be parsed."}]
        keys = set()
        with batch.input.path.open("rb") as file:
            for number, text in enumerate(file, start=1):
                try:
                    line = json.loads(text)
                    keys.add(line["key"])
                    unknown = line.keys() - {"key", "request"}
                except (ValueError, KeyError, TypeError, AttributeError):
                    return [{"code": 3, "message": f"Line {number} cannot be parsed."}]
                if unknown or len(keys) != number:
                    return [{"code": 3, "message": f"Line {number} is not valid."}]
                batch.requests = number
        return []

    def request(self, line: dict[str, Any], batch: SimulatedBatch) -> tuple[Request, str]:
        path = f"/v1beta/models/{batch.operation}:generateContent"
        headers = {"content-type": "application/json", "x-goog-api-key": "in-batch"}
        return Request("POST", path, {}, headers, json.dumps(line["request"]).encode(), 0, 0), path

    def answer(self, line: dict[str, Any], response: Response) -> dict[str, Any]:
        body = json.loads(response.body)
        if response.status == 200:  # noqa: PLR2004
            return {"key": line["key"], "response": body}
        error = {name: body["error"][name] for name in ("code", "message")}
        return {"key": line["key"], "error": error}


def _count_lines(file: StoredFile) -> int:
    with file.path.open("rb") as lines:
        return sum(1 for _ in lines)


def _file_json(file: StoredFile) -> dict[str, Any]:
    return {
        "name": f"files/{file.id}",
        "displayName": file.name,
        "mimeType": "application/jsonl",
        "sizeBytes": str(file.size),
        "createTime": datetime.fromtimestamp(file.created, UTC).isoformat().replace("+00:00", "Z"),
        "state": "ACTIVE",
    }
