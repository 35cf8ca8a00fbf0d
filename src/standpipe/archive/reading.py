"""Archive: what there is, and reading it. Needs files alone, no server."""

# pyarrow has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false
from __future__ import annotations

import contextlib
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from standpipe.archive.fields import FieldSpec, column_of, spec_type, unified
from standpipe.archive.file import ArchivedTable, FileInfo, Selection, read_info, read_rows
from standpipe.archive.names import (
    BEGIN,
    ArchiveFile,
    Chain,
    Piece,
    parse_path,
    resolve,
    stream_folder,
)
from standpipe.archive.place import Place, open_place
from standpipe.clock import parse_time
from standpipe.errors import (
    ArchiveDamagedError,
    ArchiveNotFoundError,
    ConfigError,
    StandpipeError,
)
from standpipe.event import EventId
from standpipe.limits import ARCHIVE_LOOKS_MAX, ARCHIVE_READ_ROWS

if TYPE_CHECKING:
    import pyarrow as pa

Bound = EventId | str | int
"""An event ID, or the time at which the server added an entry: ms, ISO 8601, ``-2h``."""

_INDEX_MAX: Final = 2**31 - 1
_SEQ_MAX: Final = 2**64 - 1


class Archive:
    """The archived events of any number of streams, in a folder or behind a URL.

    Args:
        url: A folder, or any fsspec URL (``s3://bucket/readings``, ``gs://…``, ``memory://…``).
            Nothing is created before the first file is written.
        options: fsspec's options for the URL's protocol, such as ``{"endpoint_url": …}``.

    Raises:
        ConfigError: fsspec refuses the URL or its options.
        MissingExtraError: fsspec or the protocol's package is not installed.
        ArchiveUnreachableError: it cannot be connected to; retryable.

    Every method may raise ArchiveUnreachableError (retryable) and ArchiveUnusableError (rights).
    All of them block: call them in a thread where an event loop runs. Threads may share one object.
    """

    def __init__(self, url: str | Path, *, options: Mapping[str, Any] | None = None) -> None:
        self.place: Final[Place] = open_place(url, options)
        self._infos: dict[str, FileInfo] = {}

    def __repr__(self) -> str:
        return f"<Archive {self.place.shown}>"

    # --- what there is ---------------------------------------------------------------------------

    def streams(self) -> list[str]:
        """The names of the streams that are archived here."""
        found: list[str] = []
        for folder in self.place.folders():
            if folder.startswith("stream="):
                file = next(filter(None, map(parse_path, self.place.files(folder))), None)
                if file is not None:
                    # Only the file has all of a long name.
                    found.append(self.info(file).stream)
        return sorted(found)

    def chains(self, stream: str) -> dict[int, Chain]:
        """The files of each shard of a stream that has any; see :func:`names.resolve`.

        Cost: a listing of the stream's folders; two, or a few more while files are being put
        together, so that none of them is missed.
        """
        found = self._list(stream)
        for _ in range(ARCHIVE_LOOKS_MAX):
            again = self._list(stream)
            # Put together behind the listing's back, a file's parts may be gone and it not there
            # yet: both are seen only when nothing vanished from one listing to the next.
            if found <= again:
                found = again
                break
            found = again
        # Of files that are gone nothing need be remembered.
        there = {file.path for file in found}
        # A copy, as threads share this object: another may add to it meanwhile.
        for path in list(self._infos):
            if path not in there and path.startswith(f"{stream_folder(stream)}/"):
                self._infos.pop(path, None)
        by_shard: dict[int, list[ArchiveFile]] = {}
        for file in found:
            by_shard.setdefault(file.shard, []).append(file)
        return {shard: resolve(files) for shard, files in sorted(by_shard.items())}

    def _list(self, stream: str) -> set[ArchiveFile]:
        return set(filter(None, map(parse_path, self.place.files(stream_folder(stream)))))

    def shards(self, stream: str) -> list[int]:
        """The shards of a stream of which something is archived."""
        return list(self.chains(stream))

    def files(self, stream: str, shard: int | None = None) -> list[ArchiveFile]:
        """The files that count, by shard and in order: what other programs are to read.

        A folder can hold more for a moment: the parts of a file that was put together from them.
        """
        chains = self.chains(stream)
        chosen = chains.values() if shard is None else [chains.get(shard, _NOTHING)]
        return [piece.file for chain in chosen for piece in chain.pieces]

    def path(self, file: ArchiveFile) -> str:
        """The whole path or URL of a file."""
        return f"{self.place.shown}/{file.path}"

    def position(self, stream: str, shard: int) -> EventId | None:
        """Up to which entry a shard is archived, inclusive: behind it the live stream goes on.

        None: nothing is archived.
        """
        return self.chains(stream).get(shard, _NOTHING).end

    def oldest(self, stream: str, shard: int) -> EventId | None:
        """The first entry that is archived; None: nothing is."""
        pieces = self.chains(stream).get(shard, _NOTHING).pieces
        return min((piece.file.first for piece in pieces), default=None)

    def info(self, file: ArchiveFile) -> FileInfo:
        """What a file says of itself; kept, as a file never changes.

        Raises:
            FileNotFoundError: it is not there any more.
            ArchiveDamagedError: it cannot be read.
        """
        info = self._infos.get(file.path)
        if info is None:
            with self.opened(file) as parquet:
                info = read_info(parquet.schema_arrow, self.path(file))
            self._infos[file.path] = info
        return info

    @contextlib.contextmanager
    def opened(self, file: ArchiveFile) -> Generator[Any]:
        """A file as a pyarrow ParquetFile.

        Raises:
            FileNotFoundError, ArchiveDamagedError: as :meth:`info`; what cannot be read inside of
                the block, too.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        with self.place.open(file.path) as source:
            try:
                yield cast("Any", pq).ParquetFile(
                    source, pre_buffer=True, page_checksum_verification=True
                )
            except (StandpipeError, FileNotFoundError):
                raise
            except (pa.ArrowException, OSError, EOFError) as error:
                raise ArchiveDamagedError(
                    f"{self.path(file)} cannot be read: {error}",
                    hint="`standpipe archive verify` looks at all files. Put a copy in its place, "
                    "or move it away to read the others.",
                ) from error

    # --- reading ---------------------------------------------------------------------------------

    def read(
        self,
        stream: str,
        *,
        shard: int | None = None,
        start: Bound | None = None,
        end: Bound | None = None,
        after: EventId | None = None,
        event_start: int | None = None,
        event_end: int | None = None,
        columns: Sequence[str] | None = None,
        keys: Collection[str] | None = None,
        rows: int = ARCHIVE_READ_ROWS,
    ) -> Iterator[ArchivedTable]:
        """Read a stream's events, in the order of each shard.

        Args:
            stream: Its name.
            shard: Its number; None: one shard after the other.
            start: Where to begin, inclusive; None: at the oldest.
            end: Where to stop, inclusive: a time covers its millisecond, an entry ID without index
                the whole entry; None: at the end of what is archived now.
            after: An entry; only what was added behind it is read.
            event_start, event_end: By the events' own time, ms, inclusive. Files are left out that
                hold none such; it says nothing about the order.
            columns: The fields to read; None: all.
            keys: Of these devices alone; None: of all.
            rows: Events per table, at most.

        Returns:
            Tables as they are asked for; none is empty of both events and undecodable entries. All
            have the same columns. Were the server's entry IDs to go back (it was restored to an
            older state), IDs do as well, from one generation to the next.

        Raises:
            ArchiveNotFoundError: nothing of the stream, or of that shard, is archived here.
            ArchiveDamagedError: a file cannot be read.
            ConfigError, EventError: a bound is none.

        Cost: a listing, and the footer of each file between the bounds before the first table; then
            a row group (131 072 rows, or less of wide ones) in memory at a time.
        """
        if rows < 1:
            raise ConfigError(f"rows is {rows}", hint="It is at least 1.")
        lower = BEGIN if start is None else bound(start, "start", is_end=False)
        if after is not None:
            lower = max(lower, EventId(after.ms, after.seq, _INDEX_MAX))
        wanted = Selection(
            start=lower,
            end=None if end is None else bound(end, "end", is_end=True),
            event_start=event_start,
            event_end=event_end,
            keys=None if keys is None else tuple(keys),
            fields=None if columns is None else tuple(columns),
            rows=rows,
        )
        pieces = self._pieces(stream, shard)
        return self._tables(stream, pieces, wanted)

    def schema(self, stream: str) -> pa.Schema:
        """The columns of the tables that reading all of a stream gives.

        Raises:
            ArchiveNotFoundError, ArchiveDamagedError: as :meth:`read`.
        """
        import pyarrow as pa

        specs = self._specs(self._pieces(stream, None), None)
        known = [
            ("shard", pa.int32()), ("entry_ms", pa.uint64()), ("entry_seq", pa.uint64()),
            ("index", pa.int32()), ("key", pa.string()), ("time", pa.int64()),
        ]  # fmt: skip
        return pa.schema(known + [(column_of(name), spec_type(s)) for name, s in specs.items()])

    def _pieces(self, stream: str, shard: int | None) -> list[Piece]:
        chains = self.chains(stream)
        if shard is not None:
            chains = {number: chain for number, chain in chains.items() if number == shard}
        if not chains:
            what = f"stream {stream!r}" + ("" if shard is None else f" shard {shard}")
            raise ArchiveNotFoundError(f"nothing of {what} is archived in {self.place.shown}")
        return [piece for chain in chains.values() for piece in chain.pieces]

    def _tables(
        self, stream: str, pieces: list[Piece], wanted: Selection
    ) -> Generator[ArchivedTable]:
        pieces = [piece for piece in pieces if _holds(piece, wanted)]
        specs: dict[str, FieldSpec] | None = None
        resume: dict[tuple[int, int], EventId] = {}
        ends = {(each.file.shard, each.file.generation): each.file.last for each in pieces}
        while pieces:
            try:
                # Not before the first table is asked for.
                specs = specs or self._specs(pieces, wanted.fields)
                while pieces:
                    which = (pieces[0].file.shard, pieces[0].file.generation)
                    here = wanted._replace(start=max(wanted.start, resume.get(which, BEGIN)))
                    if pieces[0].file.last > ends[which]:
                        # Put together since, with some that were archived after this began.
                        here = here._replace(end=ends[which]._replace(index=_INDEX_MAX))
                    for table in self._of_piece(pieces[0], here, specs):
                        yield table
                        resume[which] = table.last._replace(index=table.last.index + 1)
                    pieces.pop(0)
            except FileNotFoundError as error:
                # It has become a part of a larger one, which has taken its place.
                pieces = self._again(stream, pieces, wanted, error)

    def _again(
        self, stream: str, left: list[Piece], wanted: Selection, error: Exception
    ) -> list[Piece]:
        """What is left to read, by the files that there are now."""
        begins: dict[tuple[int, int], EventId] = {}
        ends: dict[tuple[int, int], EventId] = {}
        for piece in left:
            which = (piece.file.shard, piece.file.generation)
            begins.setdefault(which, piece.behind)
            ends[which] = piece.file.last
        found: list[Piece] = []
        for shard, chain in self.chains(stream).items():
            for piece in chain.pieces:
                which = (shard, piece.file.generation)
                if which in ends and begins[which] < piece.file.last and piece.behind < ends[which]:
                    behind = max(piece.behind, begins[which])
                    found.append(Piece(piece.file, behind))
        found = [piece for piece in found if _holds(piece, wanted)]
        if any(piece.file == left[0].file for piece in found):
            raise error  # It is in the listing, and yet not there.
        if not any(_takes_the_place(piece, left[0]) for piece in found):
            raise ArchiveDamagedError(f"{self.path(left[0].file)} is not there any more") from error
        return found

    def _of_piece(
        self, piece: Piece, wanted: Selection, specs: Mapping[str, FieldSpec]
    ) -> Generator[ArchivedTable]:
        info = self.info(piece.file)
        if not _may_hold(info, wanted):
            return
        if piece.behind > piece.file.after:
            behind = EventId(piece.behind.ms, piece.behind.seq, _INDEX_MAX)
            wanted = wanted._replace(start=max(wanted.start, behind))
        with self.opened(piece.file) as parquet:
            yield from read_rows(parquet, info, wanted, specs)

    def _specs(
        self, pieces: Sequence[Piece], fields: Collection[str] | None
    ) -> dict[str, FieldSpec]:
        found: dict[str, dict[FieldSpec, None]] = {}
        for piece in pieces:
            for name, spec in self.info(piece.file).fields.items():
                if fields is None or name in fields:
                    found.setdefault(name, {})[spec] = None
        return {name: unified(specs) for name, specs in found.items()}


_NOTHING: Final = Chain((), (), (), ())


def _takes_the_place(piece: Piece, gone: Piece) -> bool:
    """Whether one has what comes first in another."""
    one, other = piece.file, gone.file
    is_same = (one.shard, one.generation) == (other.shard, other.generation)
    return is_same and one.after <= gone.behind < one.last


def _holds(piece: Piece, wanted: Selection) -> bool:
    """Whether the names say that a file may hold something that is wanted."""
    last = EventId(piece.file.last.ms, piece.file.last.seq, _INDEX_MAX)
    return last > wanted.start and (wanted.end is None or piece.file.first <= wanted.end)


def _may_hold(info: FileInfo, wanted: Selection) -> bool:
    """Whether its footer leaves it possible as well."""
    if wanted.event_start is None and wanted.event_end is None:
        return True
    if info.time_min is None or info.time_max is None:
        return False
    return (wanted.event_start is None or info.time_max >= wanted.event_start) and (
        wanted.event_end is None or info.time_min <= wanted.event_end
    )


def bound(value: Bound, name: str, *, is_end: bool) -> EventId:
    """The first or last event that a bound lets in.

    Raises:
        ConfigError, EventError: it is none.
    """
    if isinstance(value, EventId):
        return value
    if isinstance(value, str):
        head, dash, rest = value.strip().partition("-")
        if head.isdigit() and (dash or "/" in head) and rest.partition("/")[0].isdigit():
            found = EventId.parse(value.strip())
            is_whole = is_end and "/" not in value
            return found._replace(index=_INDEX_MAX) if is_whole else found
    ms = max(0, parse_time(value, name=name))
    return EventId(ms, _SEQ_MAX, _INDEX_MAX) if is_end else EventId(ms, 0)
