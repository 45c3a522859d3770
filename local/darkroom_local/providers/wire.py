"""What the two wire formats have in common: a request understood, a request rejected."""

import base64
import binascii
import io
import re
from dataclasses import dataclass, field
from typing import Protocol

from PIL import Image

from darkroom_local.providers.config import Fault
from darkroom_local.providers.http import Request, Response


class Rejected(Exception):
    """The provider says no: `response` is how."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


@dataclass(frozen=True, slots=True)
class Picture:
    data: bytes = field(repr=False)
    mime: str


@dataclass(frozen=True, slots=True)
class EditAsk:
    """A request in our words. `size` is None when the provider chooses."""

    prompt: str
    key: str
    model: str
    images: tuple[Picture, ...] = ()
    mask: Picture | None = None
    size: tuple[int, int] | None = None
    resolution: str | None = None  # Gemini's imageSize
    n: int = 1
    quality: str = "auto"
    output: str = "png"  # png, jpeg, webp
    transparent: bool = False
    as_url: bool = False  # the old OpenAI models, unless asked for base64


class Wire(Protocol):
    """One provider's way to ask and to answer."""

    label: str

    def key(self, request: Request) -> str: ...

    def read(self, request: Request, path: str, *, decode: bool) -> EditAsk:
        """Understand and check a request as the API would. Raises Rejected."""

    def answer(self, ask: EditAsk, pictures: list[bytes], *, thoughts: bool) -> Response: ...

    def failure(self, fault: Fault, ask: EditAsk) -> Response:
        """The answer to a scripted fault that has a form of its own in this wire format."""

    def limited(self, hint: str, retry_after: float, per: str) -> Response: ...

    def not_found(self, model: str) -> Response: ...

    def bad_key(self, status: int) -> Response: ...

    def output_size(self, ask: EditAsk) -> tuple[int, int]:
        """Pixels of the answer; reads the first image's size when it decides."""


def decode_base64(text: str) -> bytes:
    """Standard or URL-safe alphabet. Raises ValueError."""
    try:
        return base64.b64decode(text.translate(_URL_SAFE) + "=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error


_URL_SAFE = str.maketrans("-_", "+/")


def open_picture(picture: Picture) -> Image.Image:
    """Decode in full, and only as what it claims to be. Raises ValueError."""
    kind = picture.mime.removeprefix("image/").upper()
    try:
        image = Image.open(io.BytesIO(picture.data), formats=[kind])
        image.load()
    except (OSError, ValueError, SyntaxError, KeyError) as error:
        raise ValueError(f"not a {kind}") from error
    return image


def text_tokens(text: str) -> int:
    return max(1, len(re.findall(r"\w+|[^\w\s]", text)) * 4 // 3)
