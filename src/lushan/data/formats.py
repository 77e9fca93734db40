"""The formats of files: csv, tsv, jsonl, json and parquet, each also gzipped; all but the nested form of SQuAD are streamed."""

import csv
import gzip
import itertools
import json
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from lushan.data.columns import Notes
from lushan.data.json_lists import ListReader
from lushan.data.squad import flat_rows, is_squad
from lushan.errors import DataError

if TYPE_CHECKING:
    from pyarrow import RecordBatch

EXTENSIONS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
GZIP_START = b"\x1f\x8b"
UTF8_MARK = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
LONGEST_FIELD_CHARACTERS = 2**31 - 1
_PIECE_BYTES = 2**20
"""A longer line of a list is read in pieces: the whole list may be one line."""
EMPTY_ROWS = "empty rows left out"


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it stands in a file."""

    values: Mapping[str, Any]
    number: int
    """Line on which it begins (csv, tsv, jsonl), or its place among the rows (json, parquet), from 1."""


def format_of(path: Path) -> str | None:
    """Give the extension that names the format, without `.gz`; None if the format is unknown."""
    name = path.name.casefold().removesuffix(".gz")
    return next((extension for extension in EXTENSIONS if name.endswith(extension)), None)


def read_records(path: Path, notes: Notes) -> Iterator[Record]:
    """Stream the records of one file.

    Raises:
        DataError: If the file is missing, of no known format, or broken; says where.
    """
    extension = format_of(path)
    if extension is None:
        raise DataError(
            f"`{path}`: unknown kind of file. Known: {', '.join(EXTENSIONS)}, each also with `.gz`."
        )
    if not path.is_file():
        raise DataError(f"`{path}` is no file. Give a file, or a folder with train.jsonl and such.")
    match extension:
        case ".csv" | ".tsv":
            yield from _read_separated(path, notes)
        case ".jsonl":
            yield from _read_json_lines(path, notes)
        case ".json":
            yield from _read_json(path, notes)
        case _:
            yield from _read_parquet(path)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    is_gzip = path.suffix.casefold() == ".gz"
    try:
        with gzip.open(path, "rb") if is_gzip else path.open("rb") as file:
            yield cast("BinaryIO", file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path.name}: the gzip file is broken or cut off ({error}). Make or copy it again."
        ) from None


def _lines(
    path: Path, cut: Callable[[BinaryIO], Iterable[bytes]] = iter
) -> Iterator[tuple[int, str]]:
    """Give the lines of a file, or the pieces into which they are cut, each with the number of its line."""
    with _opened(path) as file:
        number, offset_bytes = 1, 0
        for line in cut(file):
            content = line
            if not offset_bytes:
                content = line.removeprefix(UTF8_MARK)
                offset_bytes = len(line) - len(content)
                _check_start(content, path)
            yield number, _decoded(content, offset_bytes, place=f"{path.name}, line {number}")
            offset_bytes += len(content)
            number += line.endswith(b"\n")


def _cut_at_commas(
    file: BinaryIO, *, least_bytes: Callable[[], int] = lambda: 0
) -> Iterator[bytes]:
    """Give lines, and of a long one pieces that end with a comma: no number, word or character stands across it.

    Args:
        file: JSON.
        least_bytes: What the next piece should have, if that is more than the usual.
    """
    held, num_bytes = b"", _PIECE_BYTES
    while piece := file.readline(num_bytes):
        if piece.endswith(b"\n") or len(piece) < num_bytes:
            yield held + piece
            held = b""
            continue
        held += piece
        end = held.rfind(b",") + 1
        if end:
            yield held[:end]
        held = held[end:]
        num_bytes = max(_PIECE_BYTES, least_bytes())
    if held:
        yield held


def _check_start(line: bytes, path: Path) -> None:
    if line.startswith(UTF16_MARKS):
        raise DataError(f"{path.name} is UTF-16. Save it as UTF-8.")
    if line.startswith(GZIP_START):
        raise DataError(f"{path.name} is a gzip file. Rename it to `{path.name}.gz`.")


def _decoded(line: bytes, offset_bytes: int, *, place: str) -> str:
    if b"\0" in line:
        at = offset_bytes + line.index(b"\0")
        raise DataError(f"{place}: a NUL byte at byte {at}; this is no text file, or it is broken.")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        at = offset_bytes + error.start
        raise DataError(
            f"{place}: not UTF-8: byte 0x{line[error.start]:02x} at byte {at}. "
            "Save the file as UTF-8, such as with `iconv -f GB18030 -t UTF-8` or `-f CP1252`."
        ) from None


def _read_separated(path: Path, notes: Notes) -> Iterator[Record]:
    # The default limit of 131,072 characters is made to spot a forgotten quote; strict mode does too.
    csv.field_size_limit(LONGEST_FIELD_CHARACTERS)
    separator = "\t" if format_of(path) == ".tsv" else ","
    reader = csv.reader((line for _, line in _lines(path)), delimiter=separator, strict=True)
    header: list[str] = []
    number = 1
    try:
        for fields in reader:
            if separator == "\t":
                _refuse_swallowed(fields, place=f"{path.name}, row {number}")
            if not any(fields):
                notes.count(EMPTY_ROWS, number)
            elif not header:
                header = _checked_header(fields, path)
            else:
                _check_width(fields, header, place=f"{path.name}, row {number}")
                yield Record(dict(zip(header, fields, strict=True)), number)
            number = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path.name}, row {number}: the quotes do not fit ({error}). A field that starts with "
            'a quote must end with one; a quote inside is doubled (""); lines end with \\n or \\r\\n.'
        ) from None


def _checked_header(fields: Sequence[str], path: Path) -> list[str]:
    names = [name.strip() for name in fields]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path.name}: two columns are called `{twice}`. Rename one.")
    if len(fields) == 1 and any(mark in fields[0] for mark in ";\t"):
        raise DataError(
            f"{path.name}: the columns are not separated by commas: `{fields[0][:80]}`. "
            "Separate them by commas, or by tabs in a file called `.tsv`."
        )
    return names


def _refuse_swallowed(fields: Sequence[str], *, place: str) -> None:
    """A quote at the start of a text that nobody quoted takes in all up to the next one, other rows too."""
    for field in fields:
        if "\t" in field and "\n" in field:
            raise DataError(
                f"{place}: a field that starts with a quote goes on over a tab and a line break to the next quote: "
                f"{field[:80]!r}. If it is one text, write the file as .csv or .jsonl; if not, put quotes around the text "
                'and double those inside ("").'
            )


def _check_width(fields: Sequence[str], header: Sequence[str], *, place: str) -> None:
    if len(fields) != len(header):
        raise DataError(
            f"{place}: expected {len(header)} fields ({', '.join(header)[:200]}), "
            f"found {len(fields)}. A text that holds the separator needs quotes around it."
        )


def _read_json_lines(path: Path, notes: Notes) -> Iterator[Record]:
    for number, line in _lines(path):
        if not line or line.isspace():
            notes.count(EMPTY_ROWS, number)
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(_not_json(error, path, number)) from None
        yield _as_record(value, path=path, number=number)


def _not_json(error: Exception, path: Path, number: int, *, line_number: int | None = None) -> str:
    reason = str(error)
    if isinstance(error, json.JSONDecodeError):
        where = f"column {error.colno}"
        if line_number is not None:
            # What was being read ends with this line, and may have begun on an earlier one.
            line_number -= error.doc.count("\n", error.pos, len(error.doc) - 1)
            where = f"line {line_number}, {where}"
        reason = f"{error.msg} at {where}"
    elif isinstance(error, RecursionError):
        reason = "nested too deeply"
    return (
        f"{path.name}, row {number}: not JSON: {reason}. A .jsonl file has one "
        "object on every line; a .json file one list of objects."
    )


def _as_record(value: object, *, path: Path, number: int) -> Record:
    if not isinstance(value, dict):
        hint = " A list of objects belongs into a .json file." if isinstance(value, list) else ""
        raise DataError(
            f"{path.name}, row {number}: expected an object like "
            f'{{"text": ..., "label": ...}}, found {type(value).__name__}.{hint}'
        )
    return Record(value, number)


def _read_json(path: Path, notes: Notes) -> Iterator[Record]:
    first = next(filter(None, (piece.lstrip() for _, piece in _lines(path, _cut_at_commas))), "")
    if first.startswith("["):
        for number, value in enumerate(_values_of_list(path), start=1):
            yield _as_record(value, path=path, number=number)
        return
    if (content := _squad_content(path, first)) is not None:
        notes.say("it has the nested form of SQuAD; its rows are its questions, counted from 1.")
        yield from itertools.starmap(
            _numbered, enumerate(flat_rows(content, source=path.name), start=1)
        )
        return
    notes.say("it is no list but holds one object a line; read as JSON Lines.")
    yield from _read_json_lines(path, notes)


def _squad_content(path: Path, first: str) -> dict[str, Any] | None:
    """The content of a file that is one object of SQuAD's form, which is read as a whole; None if it is not."""
    is_likely = '"data"' in first or '"version"' in first or first.strip() == "{"
    if not is_likely:
        return None
    try:
        content = json.loads("".join(line for _, line in _lines(path)))
    except (ValueError, RecursionError):
        return None
    return content if is_squad(content) else None


def _values_of_list(path: Path) -> Iterator[object]:
    reader, num_values = ListReader(), 0
    # What has begun is decoded anew with every piece: with pieces that grow as it does, in time in proportion.
    cut = partial(_cut_at_commas, least_bytes=lambda: reader.num_open_characters)
    for line_number, piece in _lines(path, cut):
        try:
            for value in reader.feed(piece):
                num_values += 1
                yield value
        except ValueError as error:
            message = _not_json(error, path, num_values + 1, line_number=line_number)
            raise DataError(message) from None
    if not reader.is_complete:
        row = max(num_values + reader.is_inside_value, 1)
        raise DataError(f"{path.name}: the list is cut off at row {row}: `]` is missing.")


def _read_parquet(path: Path) -> Iterator[Record]:
    import pyarrow  # slow to import, and most files are text
    from pyarrow import parquet

    try:
        with _seekable(path) as file:
            batches = parquet.ParquetFile(file).iter_batches(batch_size=1024)
            values = itertools.chain.from_iterable(_rows_of(batch, path) for batch in batches)
            yield from itertools.starmap(_numbered, enumerate(values, start=1))
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the operating system's, such as no permission; pyarrow's own have no number
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"{path.name}: not a Parquet file, or broken: {reason}.") from None


def _rows_of(batch: "RecordBatch", path: Path) -> Iterator[dict[str, Any]]:
    columns: dict[str, list[Any]] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            columns[name] = column.to_pylist()
        except (ValueError, OverflowError) as error:
            if type(error) not in (ValueError, OverflowError):
                raise  # pyarrow's own, or a broken character: the file is broken
            reason = str(error).splitlines()[0].rstrip(".")
            raise DataError(
                f"{path.name}: column `{name}` has a value that cannot be read: {reason}. Write the column as text, or "
                "take it out."
            ) from None
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _numbered(number: int, values: Mapping[str, Any]) -> Record:
    return Record(values, number)


@contextmanager
def _seekable(path: Path) -> Iterator[BinaryIO]:
    if path.suffix.casefold() != ".gz":
        with path.open("rb") as file:
            yield file
        return
    # Parquet is read from its end, which gzip can only reach by unpacking all of it.
    with tempfile.TemporaryFile() as unpacked:
        with _opened(path) as packed:
            shutil.copyfileobj(packed, unpacked)
        unpacked.seek(0)
        yield unpacked
