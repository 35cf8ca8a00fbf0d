"""InfluxDB line protocol: ``meter,device=inverter-7 volts=230.5 1700000000000000000``.

The key is the value of a tag, or the series' name when none of the tags names a device. Nothing
else of the line is dropped: the measurement becomes the text field ``measurement``, every other tag
a text field of its own.

Source: https://docs.influxdata.com/influxdb/v2/reference/syntax/line-protocol/
"""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, cast

from standpipe.errors import EventError, FieldError
from standpipe.event import Event, FieldValue
from standpipe.formats.lines import Piece
from standpipe.formats.reading import Chunk, ReadOptions, Values, read_records, too_long_error

KEY_TAGS: Final = ("key", "device", "device_id", "host")
"""The tags that name a device, the first found counts, unless ``key_field`` says otherwise."""

_MEASUREMENT: Final = "measurement"
_SYNTAX_HINT: Final = (
    'Write measurement,tag=text field=1.5,count=3i,state="on" 1700000000000000000, '
    "with commas and spaces in names escaped by a backslash."
)
_MEASUREMENT_AND_TAGS: Final = re.compile(r"((?:\\.|[^\\, ])*)((?:\\.|[^\\ ])*)")
_ASSIGNMENT: Final = re.compile(r'\\.|(="(?:\\.|[^"\\])*"|=)', re.DOTALL)


class LineProtocolParser:
    """Turns lines of InfluxDB line protocol into events."""

    def __init__(self, options: ReadOptions) -> None:
        # Imported here, since --help and the other formats do without.
        import line_protocol_parser

        library = cast("Any", line_protocol_parser)
        self._parse_line = library.parse_line
        self._format_error: type[Exception] = library.LineFormatError
        self._values = Values(options, precision="ns")

    def parse(self, piece: Piece) -> Chunk:
        """The events of a piece, and an error for every line that is none."""
        if piece.too_long:
            return Chunk(errors=[too_long_error(piece.first, piece.too_long)])
        lines = piece.data.decode("utf-8", "surrogateescape").split("\n")
        # Blank lines and comments are no readings; they count as lines all the same.
        numbered = [
            (number, line)
            for number, line in enumerate(lines, piece.first)
            if (start := line.lstrip()) and start[0] != "#"
        ]
        return read_records(numbered, self._events, _text)

    def _events(self, lines: Sequence[str]) -> list[Event]:
        return [self._event(line) for line in lines]

    def _event(self, line: str) -> Event:
        try:
            parsed = self._parse_line(line)
        except UnicodeEncodeError as error:
            at = len(line[: error.start].encode("utf-8", "surrogateescape"))
            raise EventError(
                f"byte {at + 1} is 0x{ord(line[error.start]) & 0xFF:02x}, which is not UTF-8",
                hint="Turn the file into UTF-8, as in: iconv -f latin1 -t utf-8 FILE",
            ) from None
        except self._format_error as error:
            raise EventError(str(error), hint=_SYNTAX_HINT) from None
        # The parser returns both in the reverse of the line's order.
        tags = dict(reversed(cast("dict[str, str]", parsed["tags"]).items()))
        fields = dict(reversed(cast("dict[str, FieldValue]", parsed["fields"]).items()))
        if line.count("=") != len(tags) + len(fields):
            _check_names_once(line, len(tags) + len(fields))
        time = parsed["time"]
        ms = self._values.now() if time is None else self._values.time(time)
        measurement: str = parsed["measurement"]
        key = self._key(measurement, tags)
        merged: dict[str, FieldValue] = {_MEASUREMENT: measurement, **tags, **fields}
        if len(merged) != 1 + len(tags) + len(fields):
            self._refuse_clash(tags, fields)
        return Event(key, ms, self._values.clean(merged))

    def _key(self, measurement: str, tags: dict[str, str]) -> str:
        """The key, whose tag is taken out of the tags."""
        key_field = self._values.options.key_field
        for name in KEY_TAGS if key_field is None else (key_field,):
            if name in tags:
                return tags.pop(name)
        if key_field is not None or self._values.options.key is not None:
            return self._values.missing_key(tags)
        series = [measurement.replace("\\", "\\\\").replace(",", "\\,").replace(" ", "\\ ")]
        series += [f"{_escaped(name)}={_escaped(tags[name])}" for name in sorted(tags)]
        return ",".join(series)

    def _refuse_clash(self, tags: dict[str, str], fields: dict[str, FieldValue]) -> None:
        clashing = ({_MEASUREMENT} & (tags.keys() | fields.keys())) | (tags.keys() & fields.keys())
        left = sorted(clashing)
        raise FieldError(
            f"{left} would have two values: measurement, tags and fields share their names",
            field=left[0],
            hint="Rename the tag or the field where it is written.",
        )


def _escaped(text: str) -> str:
    """A tag's name or value as line protocol writes it, so that no two series share a name."""
    return re.sub(r"([\\,= ])", r"\\\1", text)


def _text(line: str) -> str:
    return line.rstrip("\r")


def _check_names_once(line: str, found: int) -> None:
    """Refuse a line that gives a field twice, of which the parser would drop one unseen."""
    line = line.lstrip()
    parts = cast("re.Match[str]", _MEASUREMENT_AND_TAGS.match(line))
    # Quotes mean something in the fields alone.
    tags = len(re.findall(r"(?<!\\)=", parts[2]))
    fields = sum(match[1] is not None for match in _ASSIGNMENT.finditer(line, parts.end()))
    if tags + fields > found:
        raise EventError("a field is given more than once", hint="Keep one value per field.")
