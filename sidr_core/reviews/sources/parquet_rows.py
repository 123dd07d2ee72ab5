"""Rows of Parquet files of any origin in bounded memory: a few KB of them may stand for many GB.

A page holds a value once and how often it comes. Texts are therefore read as their dictionary and counted before
they are written out, and what the file itself says of its size is looked at before it is read. The depth of a
schema is limited by the library.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sidr_core.errors import InputError

#: Bytes that one batch of rows may come to: 10 KB a row in one of 100,000.
LARGEST = 1 << 30
#: What each value of a list costs at least, however few bytes stand for it.
_VALUE = 8
#: Values of a list that a byte of the file may stand for before the file's account of its rows is not trusted.
_VALUES_A_BYTE = 8
#: A dictionary cannot be written out as these.
_VIEWED = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}


def batches(path: Path, columns: Sequence[str], rows: int) -> Iterator[tuple[pa.Table, int]]:
    """Tables of at most `rows` rows of some columns, each with the number of rows of the whole file.

    Raises:
        InputError: a batch would come to more than `LARGEST` bytes. Errors of Arrow: it is no whole Parquet file.
    """
    metadata = pq.read_metadata(path)
    leaves = [
        number
        for number in range(metadata.num_columns)
        if any(f"{metadata.schema.column(number).path}.".startswith(f"{name}.") for name in columns)
    ]
    _require_modest(path, metadata, leaves, rows)
    plain = {field.name: _plain(field.type) for field in metadata.schema.to_arrow_schema()}
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    repeated = [  # text with a dictionary; other columns take the room that their pages take
        metadata.schema.column(number).path
        for number in leaves
        if metadata.schema.column(number).physical_type == "BYTE_ARRAY"
        and any(group.column(number).has_dictionary_page for group in groups)
    ]
    with pq.ParquetFile(path, metadata=metadata, read_dictionary=repeated) as file:
        for batch in file.iter_batches(rows, columns=list(columns)):
            if (size := sum(map(_bytes_of_texts, batch.columns))) > LARGEST:
                raise _too_large(path, size)
            arrays = [array.cast(plain[name]) for name, array in zip(batch.schema.names, batch, strict=True)]
            yield pa.table(arrays, batch.schema.names), metadata.num_rows


def _require_modest(path: Path, metadata: pq.FileMetaData, leaves: Sequence[int], rows: int) -> None:
    """Refuse what is too large by the file's own account: pages that unpack to it, lists of very many values."""
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        share = min(1.0, rows / max(group.num_rows, 1))
        for number in leaves:
            column = group.column(number)
            listed = column.num_values * _VALUE if metadata.schema.column(number).max_repetition_level > 0 else 0
            # Values that take next to no room may all be those of one row.
            spread = share if column.num_values <= column.total_compressed_size * _VALUES_A_BYTE else 1.0
            size = max(column.total_uncompressed_size * share, listed * spread)
            if size > LARGEST:
                raise _too_large(path, int(size))


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type that the dictionaries within a type are written out as."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_plain(kind.key_type), kind.item_field.with_type(_plain(kind.item_type)))
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        size = -1 if pa.types.is_list(kind) else kind.list_size
        return pa.list_(kind.value_field.with_type(_plain(kind.value_type)), size)
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_plain(kind.value_type)))
    return _VIEWED.get(kind, kind)


def _bytes_of_texts(array: pa.Array) -> int:
    """What the dictionaries in an array come to when they are written out."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        if not (pa.types.is_binary(kind.value_type) or pa.types.is_string(kind.value_type)):
            return 0
        lengths = pc.binary_length(array.dictionary)  # type: ignore[attr-defined]
        return pc.sum(lengths.cast(pa.int64()).take(array.indices)).as_py() or 0  # type: ignore[attr-defined]
    if pa.types.is_struct(kind):
        return sum(map(_bytes_of_texts, array.flatten()))
    if pa.types.is_map(kind):
        return _bytes_of_texts(array.keys) + _bytes_of_texts(array.items)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _bytes_of_texts(array.flatten())
    return 0


def _too_large(path: Path, size: int) -> InputError:
    return InputError(
        f"{path} holds more than it seems to",
        expected=f"at most {LARGEST >> 30} GB in {100_000:,} rows",
        found=f"{size / 2**30:,.1f} GB in one column, or batch of rows",
        fix="cut long texts and lists before the file is given to this program; or fetch it again, if that cannot be",
    )
