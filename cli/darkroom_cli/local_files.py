"""Local files that become a job: a CSV, the images it names, or a folder of images."""

import csv
import gzip
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.header import Header
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from darkroom.csv_input.fields import normalize_name, parse_options
from darkroom.csv_input.names import UsedNames, parse_output_name
from darkroom.csv_input.reader import CsvInput, JobRows, read_job_rows
from darkroom.csv_input.values import parse_images
from darkroom.errors import JobRejected
from darkroom.formatting import plural, quoted
from darkroom.images.file_types import describe_unsupported, is_heic, is_image
from darkroom_cli.error_messages import CommandFailed, UsageMistake
from darkroom_cli.session import Session

_CHUNK_BYTES = 1 << 20
_HEAD_BYTES = 2048  # enough to recognise a file's type
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html: names and values
_MAX_METADATA_BYTES = 2048
_HEADER = ("image_url", "output_name")
_LISTED = 12  # skipped files named in a note


def read_chunks(path: Path, offset: int = 0) -> Iterator[bytes]:
    with path.open("rb") as body:
        body.seek(offset)
        while chunk := body.read(_CHUNK_BYTES):
            yield chunk


def open_csv(path: Path, options: Mapping[str, object]) -> JobRows:
    """Read the header row.

    Raises UsageMistake (name or options), JobRejected (contents), with the job's own sentences.
    """
    try:
        parsed = parse_options(as_metadata(options))
    except JobRejected as error:
        raise UsageMistake(str(error)) from error
    object_name(path)
    return read_job_rows(partial(read_chunks, path), parsed)


def as_metadata(options: Mapping[str, object]) -> Mapping[str, str]:
    """Job options as S3 metadata. S3 takes ASCII only: other text becomes RFC 2047 words."""
    metadata = {}
    for name, value in options.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        encoded = text if text.isascii() else Header(text, "utf-8", maxlinelen=10_000).encode()
        metadata[name.replace("_", "-")] = encoded
    size = sum(len(name) + len(value) for name, value in metadata.items())
    if size > _MAX_METADATA_BYTES:
        raise UsageMistake(
            f"The options take {size:,} bytes, and S3 stores {_MAX_METADATA_BYTES:,}: shorten "
            "them, or write the instructions into a column of the CSV."
        )
    return metadata


def object_name(path: Path) -> str:
    """The file's name with a lower-case suffix. Raises UsageMistake if it is not a CSV's."""
    for suffix in (".csv.gz", ".csv"):
        if path.name.lower().endswith(suffix) and len(path.name) > len(suffix):
            return path.name[: -len(suffix)] + suffix
    raise UsageMistake(f"{path}: the name must end in .csv or .csv.gz, or no job would start.")


def open_for_writing(path: Path) -> IO[str]:
    """A CSV in UTF-8, compressed if its name ends in .gz."""
    if path.suffix == ".gz":
        return gzip.open(path, "wt", encoding="utf-8", newline="")
    return path.open("w", encoding="utf-8", newline="")


def content_problem(path: Path) -> str | None:
    """Why a file is not an image, by its content; None if it is one."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return describe_unsupported(head) if is_heic(head) or not is_image(head) else None


def csv_of_folder(session: Session, folder: Path, options: Mapping[str, object]) -> Path:
    """Write the CSV of a folder's images, or add those that are new to the one that is there.

    It is kept beside the folder, for the next run. One row per image, those of subfolders included,
    in natural order (`2.jpg` before `10.jpg`); rows that are there keep their place and their
    cells. Raises CommandFailed if there are no images, or if the CSV lists something else.
    """
    folder = folder.resolve()
    if not folder.name:
        raise UsageMistake(f"{folder} cannot be submitted: name a folder inside it.")
    path = folder.with_name(f"{folder.name}.csv")
    if "instruction" not in options and not path.exists():
        raise UsageMistake(
            f"{folder.name} is a folder: add --instruction with the edit to make to each image, as "
            'in --instruction "Put the product on a plain white background".'
        )
    with session.spinner(f"Looking for images in {folder.name}"):
        images, skipped = _search(folder)
    if skipped:
        shown = "; ".join(skipped[:_LISTED])
        more = f"; and {len(skipped) - _LISTED:,} more" if len(skipped) > _LISTED else ""
        session.note(f"{plural(len(skipped), 'other file')} skipped: {shown}{more}.")
    if not images:
        raise CommandFailed(f"The folder {folder} contains no images.")
    listed = _Listed.read(path, folder.name) if path.exists() else _Listed(_HEADER)
    new = [image for image in images if image not in listed.images]
    if new:
        listed.add(new, below=folder.name)
        listed.write(path)
        session.note(f"{path} lists {plural(len(listed.rows), 'image')}, {len(new):,} of them new.")
    return path


def _search(folder: Path) -> tuple[list[str], list[str]]:
    """The images, by path relative to the CSV, and the other files with the reason.

    Hidden files and folders are left out; links to folders are not followed.
    """
    images, others = list[str](), list[str]()
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(parent, name)
            if name.startswith(".") or not path.is_file():
                continue
            relative = path.relative_to(folder.parent).as_posix()
            if problem := content_problem(path):
                others.append(f"{quoted(relative)} {problem}")
            else:
                images.append(relative)
    return sorted(images, key=_natural_order), sorted(others, key=_natural_order)


def _natural_order(path: str) -> list[list[tuple[int, int, str]]]:
    """Numbers in names compare as numbers."""
    return [
        [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.split(r"(\d+)", part)]
        for part in path.casefold().split("/")
    ]


@dataclass(slots=True)
class _Listed:
    """The rows of a folder's CSV."""

    header: Sequence[str]
    delimiter: str = ","
    rows: list[list[str]] = field(default_factory=list)
    images: set[str] = field(default_factory=set)
    names: UsedNames = field(default_factory=UsedNames)  # of edited images

    @classmethod
    def read(cls, path: Path, folder: str) -> "_Listed":
        opened = CsvInput.open(partial(read_chunks, path))
        listed = cls(opened.header, opened.delimiter)
        try:
            image, name = map(listed.position, _HEADER)
        except ValueError:
            raise _other_csv(path, folder) from None
        for number, record in enumerate(opened.records()):
            cells = record + [""] * (len(listed.header) - len(record))
            listed.rows.append(cells)
            with suppress(ValueError):  # a cell that cannot be used fails its row, as in any CSV
                listed.images.update(parse_images(cells[image].strip()))
            listed.names.first_user(cells[name].strip(), number)
        if not any(reference.startswith(f"{folder}/") for reference in listed.images):
            raise _other_csv(path, folder)
        return listed

    def position(self, column: str) -> int:
        return [normalize_name(name) for name in self.header].index(column)

    def add(self, images: Sequence[str], *, below: str) -> None:
        image, name = map(self.position, _HEADER)
        for reference in images:
            cells = [""] * len(self.header)
            cells[image] = _as_cell(reference)
            cells[name] = self._output_name(reference.removeprefix(f"{below}/"))
            self.rows.append(cells)

    def _output_name(self, image: str) -> str:
        """As the image is named; with its extension too where another image has that name.

        Empty, for the usual name, where the image's cannot be stored on every system.
        """
        for candidate in (str(PurePosixPath(image).with_suffix(".png")), f"{image}.png"):
            with suppress(ValueError):
                parsed = parse_output_name(candidate)
                if self.names.first_user(parsed, len(self.rows)) is None:
                    return parsed
        return ""

    def write(self, path: Path) -> None:
        partial_file = path.with_name(f".{path.name}.part")
        with open_for_writing(partial_file) as text:
            writer = csv.writer(text, delimiter=self.delimiter)
            writer.writerow(self.header)
            writer.writerows(self.rows)
        partial_file.replace(path)


def _as_cell(reference: str) -> str:
    """The reference, as a JSON list where it would be read as several."""
    with suppress(ValueError):
        if parse_images(reference) == (reference,):
            return reference
    return json.dumps([reference], ensure_ascii=False)


def _other_csv(path: Path, folder: str) -> CommandFailed:
    return CommandFailed(
        f"{path} does not list the images of the folder {folder}: submit it by its name, or rename "
        "it, so that the list of the folder can be kept there."
    )
