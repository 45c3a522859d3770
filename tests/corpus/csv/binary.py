"""Files, not all of them CSVs, that a text editor would damage, so they are made by code."""

import gzip
import zipfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path

from PIL import Image

from tests.corpus.csv.hostile import HOSTILE

_TEXT = "image_url,instruction\nphotos/café.jpg,ein Schild mit 5 € malen\n"


def _image(kind: str) -> bytes:
    out = BytesIO()
    Image.new("RGB", (16, 16), "teal").save(out, kind)
    return out.getvalue()


def _workbook() -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as book:
        book.writestr("xl/workbook.xml", "<workbook/>")
    return out.getvalue()


def _wide(columns: int) -> bytes:
    names = ["image_url", "instruction", *(f"column_{i}" for i in range(columns - 2))]
    return "\n".join([",".join(names), ",".join(["a.jpg", "red", *["x"] * (columns - 2)])]).encode()


def _gzipped() -> bytes:
    return gzip.compress(_TEXT.encode(), mtime=0)


def _damaged() -> bytes:
    data = bytearray(_gzipped())
    data[20] ^= 0xFF
    return bytes(data)


FILES: Mapping[str, Callable[[], bytes]] = {
    "empty": bytes,
    "only-bom": lambda: b"\xef\xbb\xbf",
    "only-blank-lines": lambda: b"\r\n\r\n  \r\n",
    "png": lambda: _image("PNG"),
    "jpeg": lambda: _image("JPEG"),
    "webp": lambda: _image("WEBP"),
    "gif": lambda: _image("GIF"),
    "pdf": lambda: b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "xlsx": _workbook,
    "xls": lambda: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512),
    "parquet": lambda: b"PAR1" + bytes(64),
    "zstd": lambda: b"\x28\xb5\x2f\xfd" + bytes(16),
    "sqlite": lambda: b"SQLite format 3\0" + bytes(64),
    "utf8-bom": lambda: _TEXT.encode("utf-8-sig"),
    "utf16-le-bom": lambda: _TEXT.encode("utf-16"),
    "utf16-be-bom": lambda: b"\xfe\xff" + _TEXT.encode("utf-16-be"),
    "utf16-no-bom": lambda: _TEXT.encode("utf-16-le"),
    "utf16-cut": lambda: _TEXT.encode("utf-16")[:-1],
    "utf32": lambda: _TEXT.encode("utf-32"),
    "latin1": lambda: _TEXT.replace("€", "EUR").encode("latin-1"),
    "windows-1252": lambda: "instruction\nein Schild mit 5 € malen\n".encode("cp1252"),
    "bare-cr": lambda: _TEXT.replace("\n", "\r").encode(),
    "crlf": lambda: _TEXT.replace("\n", "\r\n").encode(),
    "nul": lambda: b"image_url,instruction\na.jpg,red\nb.jpg,bl\0ue\n",
    "gzip": _gzipped,
    "gzip-two-members": lambda: (
        gzip.compress(_TEXT[:40].encode()) + gzip.compress(_TEXT[40:].encode())
    ),
    "gzip-cut": lambda: _gzipped()[:-12],
    "gzip-damaged": _damaged,
    "gzip-of-png": lambda: gzip.compress(_image("PNG")),
    "gzip-only-in-name": _TEXT.encode,
    "columns-1000": lambda: _wide(1_000),
    "columns-1001": lambda: _wide(1_001),
    "cell-longest": lambda: b"instruction,note\nred," + b"x" * 131_072 + b"\n",
    "cell-too-long": lambda: b"instruction,note\nred," + b"x" * 131_073 + b"\n",
    "record-too-long": lambda: b"instruction,a,b,c,d,e,f,g,h\nred" + (b"," + b"x" * 130_000) * 8,
    "instruction-too-long": lambda: b"instruction\n" + b"x" * 32_001 + b"\n",
    "header-too-long": lambda: b"instruction," + b"x" * 70_000 + b"\nred,\n",
}

CORPUS = Path(__file__).parent
CSVS = {path.stem: path.read_bytes for path in sorted(CORPUS.glob("*.csv"))}
CSVS |= {**FILES, **HOSTILE}
