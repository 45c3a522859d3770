"""Bytes to lines: streamed gzip, encodings, files that are not text."""

import gzip
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.csv_input import text
from darkroom.csv_input.text import Lines, TextFormat, gunzip, read_format, read_text
from darkroom.errors import JobRejected
from tests.fakes.csv_files import opened


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return opened(data, size)(0)


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=4), st.integers(1, 50))
def test_consecutive_gzip_members_are_one_file(members: list[bytes], size: int) -> None:
    zipped = b"".join(gzip.compress(member) for member in members)
    assert b"".join(gunzip(pieces(zipped, size))) == b"".join(members)


@given(st.integers(1, 40), st.integers(1, 7))
def test_zero_padding_after_gzip_is_ignored(zeros: int, size: int) -> None:
    zipped = gzip.compress(b"a,b\n") + bytes(zeros)
    assert b"".join(gunzip(pieces(zipped, size))) == b"a,b\n"


@given(st.data())
def test_truncated_gzip_is_rejected(data: st.DataObject) -> None:
    zipped = gzip.compress(b"image_url,instruction\n" + b"a.jpg,red\n" * 50)
    cut = data.draw(st.integers(2, len(zipped) - 1))
    with pytest.raises(JobRejected, match="ends too early"):
        list(gunzip(pieces(zipped[:cut], 16)))


@given(st.data())
def test_gzip_with_a_wrong_byte_is_rejected_or_yields_the_same_text(data: st.DataObject) -> None:
    text = b"image_url,instruction\n" + b"a.jpg,red\n" * 50
    zipped = bytearray(gzip.compress(text, mtime=0))
    place = data.draw(st.integers(0, len(zipped) - 1))
    zipped[place] ^= data.draw(st.integers(1, 255))
    try:
        read = b"".join(gunzip(pieces(bytes(zipped), 64)))
    except JobRejected as error:
        outcome = str(error)
    else:
        outcome = "gzip" if read == text else "other text"  # no checksum covers some header bytes
    assert "gzip" in outcome


def test_a_gzip_bomb_is_decompressed_piece_by_piece() -> None:
    zipped = gzip.compress(bytes(64 << 20))
    assert max(map(len, gunzip(pieces(zipped, 1 << 20)))) <= 1 << 20


def test_text_that_does_not_end_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MAX_TEXT_BYTES", 100)  # 16 GiB of it would take too long
    with pytest.raises(JobRejected, match="larger than 16 GiB"):
        list(Lines(pieces(b"\n" * 101, 10), "utf-8", 0))


@given(st.text(), st.integers(1, 5), st.sampled_from(["utf-8", "utf-16-le", "utf-16-be"]))
def test_lines_are_the_text_and_offsets_count_its_bytes(
    text: str, size: int, encoding: str
) -> None:
    data = text.replace("\0", "").encode(encoding, "ignore")
    lines = Lines(pieces(data, size), encoding, 7)
    read = b""
    for line in lines:
        read += line.encode(encoding)
        lines.record_chars = 0
        assert lines.offset == 7 + len(read)
    assert read == data


LATIN_1 = ["image_url,instruction", "a.jpg,red", "b.jpg,caf\xe9"]


@pytest.mark.parametrize(
    ("data", "encoding", "sentence"),
    [
        *(
            (
                end.join(LATIN_1).encode("latin-1"),
                "utf-8",
                r"Line 3 is not UTF-8 text \(byte 0xE9\)",
            )
            for end in ("\n", "\r\n", "\r")
        ),
        (b"a.jpg,red\n" * 5_000 + b"b.jpg,\xff\n", "utf-8", "Line 5001 is not UTF-8"),
        ("caf\xe9".encode()[:-1], "utf-8", "Line 1 is not UTF-8"),
        ("ab\n".encode("utf-16-le") + b"x", "utf-16-le", "UTF-16 text is cut off or damaged"),
        (b"\x00\xd8a\x00", "utf-16-le", "UTF-16 text is cut off or damaged"),
        (b"ok\nno\0t ok\n", "utf-8", "Line 2 contains NUL"),
    ],
)
@pytest.mark.parametrize("chunk", [3, 1000])
def test_bytes_that_are_not_text_are_rejected_with_their_line(
    data: bytes, encoding: str, sentence: str, chunk: int
) -> None:
    with pytest.raises(JobRejected, match=sentence):
        list(Lines(pieces(data, chunk), encoding, 0))


def test_a_record_that_never_ends_takes_bounded_memory() -> None:
    def forever() -> Iterator[bytes]:
        while True:
            yield b"x" * 65_536

    with pytest.raises(JobRejected, match="never closed"):
        list(Lines(forever(), "utf-8", 0))


@pytest.mark.parametrize(
    ("data", "encoding", "start"),
    [
        (b"instruction\n", "utf-8", 0),
        (b"\xef\xbb\xbfinstruction\n", "utf-8", 3),
        (b"\xff\xfei\0", "utf-16-le", 2),
        (b"\xfe\xff\0i", "utf-16-be", 2),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("chunk", [1, 4096])
def test_the_format_is_detected_from_the_first_bytes(
    data: bytes, encoding: str, start: int, zipped: bool, chunk: int
) -> None:
    stored = gzip.compress(data) if zipped else data
    found, head = read_format(opened(stored, chunk))
    assert found == TextFormat(zipped, encoding, start)
    assert head == data


@given(st.binary(min_size=1, max_size=300), st.data(), st.booleans())
def test_reading_from_an_offset_yields_the_remaining_bytes(
    data: bytes, draw: st.DataObject, zipped: bool
) -> None:
    offset = draw.draw(st.integers(0, len(data)))
    stored = gzip.compress(data) if zipped else data
    read = read_text(opened(stored, 17), TextFormat(zipped, "utf-8", 0), offset)
    assert b"".join(read) == data[offset:]


@given(st.binary(max_size=400), st.integers(1, 100))
def test_any_bytes_are_read_or_rejected(data: bytes, chunk: int) -> None:
    source, sentence = opened(data, chunk), "."
    try:
        found, _ = read_format(source)
        for _ in Lines(read_text(source, found, found.start), found.encoding, found.start):
            pass
    except JobRejected as error:
        sentence = str(error)
    assert sentence.endswith(".")
