"""Bytes to lines: gzip in pieces, encodings, files that are no text."""

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
def test_gzip_members_in_a_row_are_one_file_whatever_the_chunks(
    members: list[bytes], size: int
) -> None:
    packed = b"".join(gzip.compress(member) for member in members)
    assert b"".join(gunzip(pieces(packed, size))) == b"".join(members)


@given(st.integers(1, 40), st.integers(1, 7))
def test_zero_padding_after_gzip_is_no_damage(zeros: int, size: int) -> None:
    packed = gzip.compress(b"a,b\n") + bytes(zeros)
    assert b"".join(gunzip(pieces(packed, size))) == b"a,b\n"


@given(st.data())
def test_gzip_cut_anywhere_is_told_never_read_as_a_shorter_file(data: st.DataObject) -> None:
    packed = gzip.compress(b"image_url,instruction\n" + b"a.jpg,red\n" * 50)
    cut = data.draw(st.integers(2, len(packed) - 1))
    with pytest.raises(JobRejected, match="ends too early"):
        list(gunzip(pieces(packed[:cut], 16)))


@given(st.data())
def test_gzip_with_a_wrong_byte_is_told_or_gives_the_same(data: st.DataObject) -> None:
    text = b"image_url,instruction\n" + b"a.jpg,red\n" * 50
    packed = bytearray(gzip.compress(text, mtime=0))
    place = data.draw(st.integers(0, len(packed) - 1))
    packed[place] ^= data.draw(st.integers(1, 255))
    try:
        read = b"".join(gunzip(pieces(bytes(packed), 64)))
    except JobRejected as error:
        told = str(error)
    else:
        told = "gzip" if read == text else "other text"  # a byte that nothing checks
    assert "gzip" in told


def test_a_gzip_bomb_is_unpacked_piece_by_piece() -> None:
    packed = gzip.compress(bytes(64 << 20))
    assert max(map(len, gunzip(pieces(packed, 1 << 20)))) <= 1 << 20


def test_text_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MAX_TEXT_BYTES", 100)  # 16 GiB of it would take too long
    with pytest.raises(JobRejected, match="larger than 16 GiB"):
        list(Lines(pieces(b"\n" * 101, 10), "utf-8", 0))


@given(st.text(), st.integers(1, 5), st.sampled_from(["utf-8", "utf-16-le", "utf-16-be"]))
def test_lines_are_the_text_and_the_offset_counts_its_bytes(
    text: str, size: int, encoding: str
) -> None:
    data = text.replace("\0", "").encode(encoding, "ignore")
    lines = Lines(pieces(data, size), encoding, 7)
    seen = b""
    for line in lines:
        seen += line.encode(encoding)
        lines.record_chars = 0
        assert lines.offset == 7 + len(seen)
    assert seen == data


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_byte_that_is_no_utf8_is_told_with_its_line(end: str) -> None:
    data = end.join(["image_url,instruction", "a.jpg,red", "b.jpg,caf\xe9"]).encode("latin-1")
    with pytest.raises(JobRejected, match=r"Line 3 is not UTF-8 text \(byte 0xE9\)"):
        list(Lines(pieces(data, 1000), "utf-8", 0))


def test_the_line_of_a_bad_byte_is_right_far_into_the_file() -> None:
    data = b"a.jpg,red\n" * 5_000 + b"b.jpg,\xff\n"
    with pytest.raises(JobRejected, match="Line 5001 is not UTF-8"):
        list(Lines(pieces(data, 333), "utf-8", 0))


def test_a_character_cut_at_the_end_is_told() -> None:
    with pytest.raises(JobRejected, match="Line 1 is not UTF-8"):
        list(Lines(pieces("caf\xe9".encode()[:-1], 3), "utf-8", 0))


@pytest.mark.parametrize("data", ["ab\n".encode("utf-16-le") + b"x", b"\x00\xd8a\x00"])
def test_utf16_cut_or_broken_is_told(data: bytes) -> None:
    with pytest.raises(JobRejected, match="UTF-16 text is cut off or damaged"):
        list(Lines(pieces(data, 3), "utf-16-le", 0))


def test_nul_characters_are_told_with_their_line() -> None:
    with pytest.raises(JobRejected, match="Line 2 contains NUL"):
        list(Lines(pieces(b"ok\nno\0t ok\n", 4), "utf-8", 0))


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
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("chunk", [1, 4096])
def test_format_is_read_from_the_first_bytes(
    data: bytes, encoding: str, start: int, packed: bool, chunk: int
) -> None:
    stored = gzip.compress(data) if packed else data
    found, head = read_format(opened(stored, chunk))
    assert found == TextFormat(packed, encoding, start)
    assert head == data


@given(st.binary(min_size=1, max_size=300), st.data(), st.booleans())
def test_reading_from_an_offset_gives_the_rest(
    data: bytes, draw: st.DataObject, packed: bool
) -> None:
    offset = draw.draw(st.integers(0, len(data)))
    stored = gzip.compress(data) if packed else data
    read = read_text(opened(stored, 17), TextFormat(packed, "utf-8", 0), offset)
    assert b"".join(read) == data[offset:]


@given(st.binary(max_size=400), st.integers(1, 100))
def test_any_bytes_are_text_or_rejected_with_a_sentence(data: bytes, chunk: int) -> None:
    source, told = opened(data, chunk), "."
    try:
        found, _ = read_format(source)
        for _ in Lines(read_text(source, found, found.start), found.encoding, found.start):
            pass
    except JobRejected as error:
        told = str(error)
    assert told.endswith(".")
