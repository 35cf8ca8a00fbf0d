"""Small files put together into larger ones, while others read them.

The larger file is written like every other, and takes the place of its parts in the moment in which
it gets its name, because its range covers theirs; then they are removed. If the process dies in
between, they do not count, and the next who has the shard removes them.
"""

# pyarrow has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false
from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import msgspec

from standpipe.archive.fields import (
    Cells,
    FieldSpec,
    Kind,
    Part,
    arrow_types,
    column_of,
    is_whole,
    typed_arrays,
    value_of,
)
from standpipe.archive.file import Draft, FileInfo, build
from standpipe.archive.lease import Lease, commit
from standpipe.archive.names import (
    Chain,
    Piece,
    digest_of,
    file_path,
    resolve,
)
from standpipe.archive.reading import Archive
from standpipe.errors import ArchiveDamagedError
from standpipe.limits import (
    ARCHIVE_FILE_BYTES_MAX,
    ARCHIVE_FILE_ROWS_MAX,
)

if TYPE_CHECKING:
    import pyarrow as pa

log: Final = logging.getLogger("standpipe.archive")


def clean(archive: Archive, chain: Chain) -> int:
    """Remove the files of a shard that do not count any more; how many.

    None before the one that took their place has been found whole.

    Raises:
        ArchiveDamagedError: that one is not.
    """
    for file in chain.superseded:
        for piece in chain.pieces:
            other = piece.file
            if (
                other.generation == file.generation
                and other.after < file.last
                and file.after < other.last
            ):
                check_digest(archive, piece)
    for file in chain.superseded:
        archive.place.remove(file.path)
    return len(chain.superseded)


def check_digest(archive: Archive, piece: Piece) -> bytes:
    """The content of a file.

    Raises:
        ArchiveDamagedError: it is not what its name says.
    """
    content = archive.place.read(piece.file.path)
    if digest_of(content) != piece.file.digest:
        raise ArchiveDamagedError(
            f"{archive.path(piece.file)} is not what was written: its SHA-256 begins "
            f"{digest_of(content)}"
        )
    return content


async def merge_small(
    archive: Archive, stream: str, lease: Lease, *, everything: bool = False
) -> int:
    """Put files of a shard together, as many as fit into one; how many were.

    Args:
        archive: Where they are.
        stream: The stream's name.
        lease: The shard's, which nobody else has meanwhile.
        everything: The newest hour as well, which is still being added to.

    Raises:
        LeaseLostError: the lease is another's by now; nothing is harmed.
        ArchiveError: the place refuses, or a file is damaged.

    Delivery:
        If the process dies, every entry is in the archive, and no reader sees one twice.
    """
    chains = await asyncio.to_thread(archive.chains, stream)
    chain = chains.get(lease.shard) or resolve(())
    merged = 0
    for group in await asyncio.to_thread(_groups, archive, chain, everything):
        path, content = await asyncio.to_thread(_merged, archive, group)
        await commit(lease, archive.place, path, content)
        for piece in group:
            await asyncio.to_thread(archive.place.remove, piece.file.path)
        merged += len(group)
    return merged


def _groups(archive: Archive, chain: Chain, everything: bool) -> list[list[Piece]]:
    """Files that lie one behind another in one hour and fit into one."""
    groups: list[list[Piece]] = []
    newest = chain.pieces[-1].file.folder if chain.pieces else ""
    for (folder, _), found in groupby(
        chain.pieces, key=lambda piece: (piece.file.folder, piece.file.generation)
    ):
        pieces = list(found)
        if len(pieces) < 2 or (folder == newest and not everything):
            continue
        group: list[Piece] = []
        rows = size = 0
        for piece in pieces:
            own_rows, own_size = _size(archive, piece)
            follows = bool(group) and piece.file.after == group[-1].file.last
            fits = (
                rows + own_rows <= ARCHIVE_FILE_ROWS_MAX
                and size + own_size <= ARCHIVE_FILE_BYTES_MAX
            )
            if not (follows and fits):
                groups.append(group)
                group, rows, size = [], 0, 0
            group.append(piece)
            rows, size = rows + own_rows, size + own_size
        groups.append(group)
    # One that overlaps another is left as it is: `verify` shows it to a person.
    return [
        group
        for group in groups
        if len(group) > 1 and all(piece.behind == piece.file.after for piece in group)
    ]


def _size(archive: Archive, piece: Piece) -> tuple[int, int]:
    """Rows of a file, and bytes of its columns before compression."""
    with archive.opened(piece.file) as parquet:
        metadata = parquet.metadata
        groups = range(metadata.num_row_groups)
        return metadata.num_rows, sum(metadata.row_group(at).total_byte_size for at in groups)


def _merged(archive: Archive, group: Sequence[Piece]) -> tuple[str, bytes]:
    """The path and content of the file that takes the place of some."""
    parts: list[Part] = []
    infos: list[FileInfo] = []
    for piece in group:
        check_digest(archive, piece)
        info = archive.info(piece.file)
        with archive.opened(piece.file) as parquet:
            for at in range(parquet.metadata.num_row_groups):
                parts += parts_of_rows(parquet.read_row_group(at), info)
        infos.append(info)
    first, last = group[0].file, group[-1].file
    lost = [info.lost for info in infos if info.lost is not None]
    draft = Draft(
        stream=infos[0].stream,
        shard=first.shard,
        generation=first.generation,
        after=first.after,
        parts=parts,
        last_hash=infos[-1].last_hash,
        added=infos[-1].added,
        lost=sum(lost) if lost else None,
    )
    _, content = build(draft)
    path = file_path(
        infos[0].stream,
        shard=first.shard,
        generation=first.generation,
        after=first.after,
        first=first.first,
        last=last.last,
        content=content,
    )
    return path, content


# --- rows of a file as parts of another ----------------------------------------------------------


def parts_of_rows(rows: pa.Table, info: FileInfo) -> list[Part]:
    """The rows of a row group, as they were when they were archived."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not info.undecodable:
        return [_part(rows, info)]
    # Runs of entries that were read, and of those that were not, in order.
    is_raw = rows.column("raw").is_valid().combine_chunks()
    codes = pc.run_end_encode(is_raw, run_end_type=pa.int32())
    parts: list[Part] = []
    start = 0
    for end, raw in zip(codes.run_ends.to_pylist(), codes.values.to_pylist(), strict=True):
        own = rows.slice(start, end - start)
        parts.append(_raw_part(own) if raw else _part(own, info))
        start = end
    return parts


def _entries(rows: pa.Table) -> list[tuple[int, int, int]]:
    ids = zip(rows.column("entry_ms").to_pylist(), rows.column("entry_seq").to_pylist())  # noqa: B905
    return [(ms, seq, sum(1 for _ in same)) for (ms, seq), same in groupby(ids)]


def _raw_part(rows: pa.Table) -> Part:
    raw: list[tuple[str, list[bytes]]] = [
        (json.loads(why)[""], msgspec.msgpack.decode(fields, type=list[bytes]))
        for why, fields in zip(
            rows.column("marks").to_pylist(), rows.column("raw").to_pylist(), strict=True
        )
    ]
    return Part(_entries(rows), _array(rows, "key"), _array(rows, "time", "int"), {}, raw)


def _array(rows: pa.Table, column: str, kind: Kind | None = None) -> pa.Array:
    array = rows.column(column)
    if kind is not None:
        array = array.cast(arrow_types()[kind])
    found = array.combine_chunks()
    return found.chunk(0) if hasattr(found, "chunk") else found


def _part(rows: pa.Table, info: FileInfo) -> Part:
    masks = _masks(_array(rows, "marks"))
    cells = {
        name: _cells(rows, name, spec, masks.get(name, {})) for name, spec in info.fields.items()
    }
    # A field that none of these rows has is one of other rows of the file.
    cells = {name: cell for name, cell in cells.items() if cell.of or cell.nones is not None}
    return Part(_entries(rows), _array(rows, "key"), _array(rows, "time", "int"), cells)


def _masks(marks: pa.Array) -> dict[str, dict[str, pa.Array]]:
    """Field → mark → in which rows."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found: dict[str, dict[str, list[int]]] = {}
    codes = marks.dictionary_encode()
    for at, text in enumerate(codes.dictionary.to_pylist()):
        for name, mark in json.loads(text).items():
            found.setdefault(name, {}).setdefault(mark, []).append(at)
    return {
        name: {
            mark: pc.is_in(codes.indices, value_set=pa.array(ats, codes.indices.type))
            for mark, ats in by_mark.items()
        }
        for name, by_mark in found.items()
    }


def _cells(rows: pa.Table, name: str, spec: FieldSpec, masks: dict[str, pa.Array]) -> Cells:
    import pyarrow as pa
    import pyarrow.compute as pc

    array = _array(rows, column_of(name)) if spec.kind != "null" else pa.nulls(len(rows))
    nones = masks.get("none")
    if spec.nulls == "none" and array.null_count:
        nones = array.is_null()
        if "missing" in masks:
            nones = pc.and_(nones, pc.invert(masks["missing"]))
    if array.null_count == len(array):
        return Cells({}, nones)
    nothing = pa.scalar(None, array.type)
    if spec.kind == "number":
        is_int = is_whole(array) if spec.whole == "int" else masks.get("int", _none_of(array))
        if "float" in masks:
            is_int = pc.and_(is_int, pc.invert(masks["float"]))
        return Cells(
            _filled(
                int=pc.if_else(is_int, array, nothing).cast(pa.int64()),
                float=pc.if_else(is_int, nothing, array),
            ),
            nones,
        )
    of: dict[Any, pa.Array] = {}
    unmarked = array
    for mark, mask in masks.items():
        if mark not in ("none", "missing"):
            of |= _marked(mark, pc.if_else(mask, array, nothing))
            unmarked = pc.if_else(mask, nothing, unmarked)
    return Cells(of | _filled(**{spec.kind: unmarked}), nones)


def _none_of(array: pa.Array) -> pa.Array:
    import pyarrow as pa

    return pa.repeat(pa.scalar(False), len(array))


def _filled(**arrays: pa.Array) -> dict[Any, pa.Array]:
    """Those that hold anything."""
    return {kind: array for kind, array in arrays.items() if array.null_count < len(array)}


def _marked(mark: str, array: pa.Array) -> dict[Any, pa.Array]:
    """Values of another type that stand in a column of text or bytes."""
    values = [None if value is None else value_of(mark, value) for value in array.to_pylist()]
    return typed_arrays(mark, values)
