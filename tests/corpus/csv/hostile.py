"""CSVs that try to hurt: their reader, a spreadsheet, a terminal, a page or another job."""

import gzip
from collections.abc import Callable, Mapping

_LARGE = 131_072  # characters, the most a cell may have


def _row(column: str, cell: str) -> bytes:
    """A CSV of one row, whose cell may contain anything."""
    quoted = '"' + cell.replace('"', '""') + '"'
    return f"instruction,{column}\nred,{quoted}\n".encode("utf-8", "surrogatepass")


def _cell(column: str, cell: str) -> Callable[[], bytes]:
    return lambda: _row(column, cell)


HOSTILE: Mapping[str, Callable[[], bytes]] = {
    # What rows may name.
    "hostile-metadata-service": _cell("image_url", "http://169.254.169.254/latest/meta-data/"),
    "hostile-password-in-url": _cell("image_url", "https://me:pa/ss@example.com/a.png"),
    "hostile-file-url": _cell("image_url", "file:///proc/self/environ"),
    "hostile-absolute-path": _cell("image_url", "/etc/passwd"),
    "hostile-path-upwards": _cell("image_url", "../../other/secret.png"),
    "hostile-windows-path": _cell("image_url", "C:\\Users\\me\\a.png"),
    "hostile-data-url": _cell("image_url", "data:image/svg+xml,<svg onload=alert(1)>"),
    "hostile-javascript-url": _cell("image_url", "javascript:alert(1)"),
    "hostile-escape-in-reference": _cell("image_url", "a\x1b[2J.png"),
    "hostile-reversed-reference": _cell("image_url", "a\u202egnp.exe"),
    "hostile-json-too-deep": _cell("image_url", "[" * 100_000),
    "hostile-json-of-objects": _cell("image_url", '[{"url": "a.jpg"}]'),
    "hostile-commas": _cell("image_url", "," * _LARGE),
    "hostile-17-images": _cell("image_url", "|".join(f"{n}.png" for n in range(17))),
    "hostile-reference-of-130000": _cell("image_url", "https://example.com/" + "a" * 130_000),
    # Names of models, rows and images.
    "hostile-model-upwards": _cell("model", "gemini/../x"),
    "hostile-model-with-query": _cell("model", "gpt-image?key=1"),
    "hostile-model-with-line-break": _cell("model", "gpt-image\r\nX-Evil: 1"),
    "hostile-model-too-long": _cell("model", "m" * 5_000),
    "hostile-index-device": _cell("index", "COM1"),
    "hostile-index-with-line-break": _cell("index", "1\n2"),
    "hostile-name-device-superscript": _cell("output_name", "COM¹.png"),
    "hostile-name-device-blank": _cell("output_name", "nul .png"),
    "hostile-name-stream": _cell("output_name", "a.png:evil.png"),
    "hostile-name-of-a-page": _cell("output_name", "report.html"),
    "hostile-name-of-a-report": _cell("output_name", "../report.html"),
    "hostile-name-in-an-image": _cell("output_name", "a.png/b.png"),
    "hostile-name-too-long": _cell("output_name", "n" * 300),
    # Numbers.
    "hostile-n-of-9000-digits": _cell("n", "9" * 9_000),
    "hostile-n-superscript": _cell("n", "²"),
    "hostile-n-infinite": _cell("n", "inf"),
    "hostile-size-of-9000-digits": _cell("size", "9" * 9_000 + "x1"),
    # Texts.
    "hostile-instruction-with-escape": lambda: b'instruction\n"\x1b[2J\x1b]0;owned\x07"\n',
    "hostile-instruction-of-line-breaks": lambda: b'instruction\n"a' + b"\n" * 99 + b'b"\n',
    "hostile-markup": lambda: b'instruction\n"<script>alert(1)</script>"\n',
    "hostile-formula": lambda: b"instruction,note\nred,\"=cmd|' /C calc'!A0\"\n",
    "hostile-header-with-escape": lambda: b"image_url,\x1b[2J\nred,blue\n",
    "hostile-header-of-delimiters": lambda: b"," * 60_000 + b"\n",
    "hostile-surrogates": lambda: b"instruction\n\xed\xa0\x80\n",
    "hostile-overlong-utf8": lambda: b"instruction\n\xc0\xaf\n",
    # Files.
    "hostile-gzip-of-blank-lines": lambda: gzip.compress(b"instruction\n" + b"\n" * (1 << 18)),
    "hostile-gzip-of-one-line": lambda: gzip.compress(b"instruction\n" + b"x" * (1 << 20)),
    "hostile-gzip-in-gzip": lambda: gzip.compress(gzip.compress(b"instruction\nred\n"), mtime=0),
    "hostile-open-quote": lambda: b'instruction\n"' + b"x,\n" * 400_000,
    "hostile-quotes": lambda: b"instruction\n" + b'"' * 60_001 + b"\n",
}
