"""CSV with a header: quoted fields, newlines inside them, any delimiter of one character."""

from __future__ import annotations

import csv
from collections.abc import Generator, Iterator, Sequence
from inspect import GEN_CLOSED, getgeneratorstate
from itertools import count, repeat
from typing import Final, NamedTuple, NoReturn

from standpipe.errors import ConfigError, EventError
from standpipe.event import Event, FieldValue
from standpipe.formats.lines import Piece
from standpipe.formats.reading import (
    KEY_FIELD,
    Chunk,
    Columns,
    ReadOptions,
    Values,
    cell_values,
    plan_columns,
    read_records,
    too_long_error,
)
from standpipe.limits import LINE_BYTES_MAX

_DELIMITERS: Final = (",", ";", "\t", "|")


class _Record(NamedTuple):
    """A row with the text it was read from.

    Args:
        number: The number of its first line.
        lines: How many lines it spans.
        text: Those lines, without the last newline.
        row: Its cells; None when the lines are no row.
        reason: Why they are none.
    """

    number: int
    lines: int
    text: str
    row: list[str] | None
    reason: str = ""


class CsvParser:
    """Turns rows of CSV into events. The first row that is not blank is the header."""

    def __init__(self, options: ReadOptions) -> None:
        self._options = options
        self._values = Values(options)
        self._delimiter = options.delimiter
        self._open: list[str] = []  # lines of a row whose quote is still open
        self._names: list[str] = []
        self._columns = Columns(None, None, ())
        self._header = ""

    def parse(self, piece: Piece) -> Chunk:
        """The events of a piece, and an error for every row that is none.

        Raises:
            ConfigError: the header does not fit the options, or there is none.
        """
        first = piece.first - len(self._open)
        text = "\n".join((*self._open, piece.data.decode("utf-8", "surrogateescape")))
        lines = text.split("\n")[:-1]
        self._open = []
        # What follows a line that was passed over cannot close a quote that was open before it.
        records = self._records(lines, first, final=piece.final or piece.too_long > 0)
        if not self._names and not self._read_header(records, piece):
            return Chunk()
        numbered = [(record.number, record) for record in records]
        chunk = read_records(numbered, self._events, _text)
        if piece.too_long:
            chunk.errors.append(too_long_error(piece.first, piece.too_long))
        chunk.header = self._header
        return chunk

    # --- header ----------------------------------------------------------------------------------

    def _read_header(self, records: list[_Record], piece: Piece) -> bool:
        """Take the header from the records; False when it has not come yet."""
        if not records:
            if piece.too_long:
                raise ConfigError(
                    f"the header, line {piece.first}, is longer than {LINE_BYTES_MAX} bytes",
                    hint="Is it CSV? Otherwise name the format with --format.",
                )
            if piece.final:
                raise ConfigError(
                    "the input is empty: it does not even have a header",
                    hint="A CSV file begins with a line that names its columns.",
                )
            return False
        header = records.pop(0)
        if header.row is None or not _is_unicode(header.text):
            reason = header.reason or "it is not UTF-8"
            raise ConfigError(
                f"the header, line {header.number}, cannot be read: {reason}",
                hint="A CSV file begins with a line, in UTF-8, that names its columns.",
            )
        self._names = [name.strip() for name in header.row]
        self._columns = plan_columns(self._names, self._options)
        self._header = _text(header)
        return True

    def _sniffed(self, lines: Sequence[str]) -> str:
        """The delimiter that finds the key and the time in the header, else the most columns."""
        wanted = {self._options.key_field or KEY_FIELD, self._options.time_field}
        header = next(line for line in lines if line.strip())

        def found(delimiter: str) -> tuple[int, int]:
            try:
                names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter))]
            except csv.Error:
                return 0, 0  # Reading it as the header says what is wrong.
            return len(wanted.intersection(names)), len(names)

        return max(_DELIMITERS, key=found)

    # --- rows ------------------------------------------------------------------------------------

    def _records(self, lines: list[str], first: int, *, final: bool) -> list[_Record]:
        """The rows of the lines, blank ones aside; one still open is kept for the next piece."""
        if self._delimiter is None:
            if not any(map(str.strip, lines)):
                return []
            self._delimiter = self._sniffed(lines)
        if not any('"' in line for line in lines):
            try:
                rows = list(csv.reader(lines, delimiter=self._delimiter, strict=True))
            except csv.Error:
                pass  # The way below says which line it is.
            else:
                records = list(map(_Record, count(first), repeat(1), lines, rows))
                # Where every row has several cells there is no blank line to look for.
                if min(map(len, rows), default=0) > 1:
                    return records
                return list(filter(_has_cells, records))
        return list(filter(_has_cells, self._quoted_records(lines, first, final)))

    def _quoted_records(self, lines: list[str], first: int, final: bool) -> Iterator[_Record]:
        """As _records, where a row can span lines and a quote can be misplaced.

        Of a row that the csv module refuses the first line alone is given up, and reading goes on
        with the next: one stray quote must not take the good lines after it along.
        """
        start = 0  # index of the row's first line
        while start < len(lines):
            feed = _with_ends(lines, start)
            reader = csv.reader(feed, delimiter=self._delimiter or ",", strict=True)
            base = start
            while True:
                try:
                    row = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    # The feed is used up exactly when the row is still open after the last line.
                    is_open = getgeneratorstate(feed) == GEN_CLOSED
                    if is_open and not final:
                        size = sum(map(len, lines[start:]))
                        if size <= LINE_BYTES_MAX:
                            self._open = lines[start:]
                            return
                    reason = "a quote is not closed" if is_open else str(error)
                    yield _Record(first + start, 1, lines[start], None, reason)
                    start += 1
                    break
                end = base + reader.line_num
                yield _Record(first + start, end - start, "\n".join(lines[start:end]), row)
                start = end

    def _events(self, records: Sequence[_Record]) -> list[Event]:
        """Records as events, column by column."""
        rows = [record.row for record in records if record.row is not None]
        whole = len(rows) == len(records) and set(map(len, rows)) == {len(self._names)}
        if not whole or not _is_unicode("".join([record.text for record in records])):
            self._refuse(records[0])
        columns = list(zip(*rows, strict=True))
        values, at = self._values, self._columns
        times = [values.now()] * len(rows) if at.time is None else values.times(columns[at.time])
        if at.key is None:
            keys = [values.missing_key(self._names)] * len(rows)
        else:
            keys = list(map(values.key, columns[at.key]))
        cells = [self._cells(columns[position], self._names[position]) for position in at.fields]
        names = [self._names[position] for position in at.fields]
        fields = list(map(dict, map(zip, repeat(names), zip(*cells, strict=True))))
        # Without any field column there is nothing to zip, but there still are readings.
        return list(map(Event, keys, times, fields or [{} for _ in rows]))

    def _cells(self, texts: Sequence[str], name: str) -> Sequence[FieldValue]:
        """The values of one column."""
        options = self._options
        if options.numbers and name not in options.text_fields:
            values = cell_values(texts)
        else:
            values = [text or None for text in texts]
        return self._values.without_nulls(values) if options.null_texts else values

    def _refuse(self, record: _Record) -> NoReturn:
        """Raise what is wrong with the record, if it is the only one that was to be read."""
        if record.row is None:
            raise EventError(record.reason, hint='Double a quote that is meant: "5"" pipe".')
        if not _is_unicode(record.text):
            raise EventError(
                f"it is not UTF-8: {record.text!r}",
                hint="Turn the file into UTF-8, as in: iconv -f latin1 -t utf-8 FILE",
            )
        span, hint = "", f"The columns are {self._names}, parted by {self._delimiter!r}."
        if record.lines > 1:
            span = f", in {record.lines} lines"
            hint = "A quote at the start of a cell is probably not closed."
        raise EventError(
            f"{len(record.row)} columns instead of {len(self._names)}{span}", hint=hint
        )


def _with_ends(lines: list[str], start: int) -> Generator[str]:
    """The lines from one on, each with the newline that a quoted cell may keep."""
    for at in range(start, len(lines)):
        yield lines[at] + "\n"


def _text(record: _Record) -> str:
    """The record as it is to stand in a file of rejects, whose lines end with a newline alone."""
    return record.text.rstrip("\r")


def _has_cells(record: _Record) -> bool:
    """Whether it is more than a blank line; a row of empty cells is."""
    return bool(record.text.strip()) or (record.row is not None and len(record.row) > 1)


def _is_unicode(text: str) -> bool:
    """Whether the text was UTF-8; surrogates stand for bytes that were not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
