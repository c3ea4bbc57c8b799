"""Read Parquet files. Some kilobytes of Parquet can stand for a billion rows, so what they stand for is bounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from merganser.errors import InputError, first_line, first_repeated
from merganser.streams.bad_rows import BadRows
from merganser.streams.class_names import class_names, name_classes

if TYPE_CHECKING:
    import pyarrow

MOST_BYTES, BYTES_PER_BYTE = 1 << 28, 200
"""Bytes that the values of a file may have: this many, or this many per byte of the file, whichever is more."""

MOST_VALUES, VALUES_PER_BYTE = 5_000_000, 20
"""Values of a file, likewise."""

BATCH_BYTES, BATCH_ROWS = 1 << 28, (16, 4096)
"""Bytes that a batch should have at most, and the fewest and most rows of one."""

_REMEDY = "Write it again with fewer or shorter values, or as .jsonl."


def read_parquet(data: bytes, bad: BadRows) -> tuple[list[dict[str, Any]], Sequence[int]]:
    """Read the rows of a file; class numbers become class names where its metadata has them.

    Args:
        data: its bytes.
        bad: has its name in messages, and receives the rows that cannot be read.

    Returns:
        Field name -> value for each row, and the 1-based number of each row.

    Raises:
        InputError: not a Parquet file, damaged, a column twice, values that Python cannot hold (a time of nanoseconds),
            or values that need far more space than the file.
    """
    import pyarrow
    import pyarrow.parquet

    shown = bad.shown
    rows: list[dict[str, Any]] = []
    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data))
        names = file.schema_arrow.names
        if (twice := first_repeated(names)) is not None:
            raise InputError(f"{shown}: has two columns '{twice}'.", "Give every column its own name.")
        nbytes = 0
        for batch in file.iter_batches(batch_size=_batch_size(file.metadata, len(data), shown)):
            arrays = [_decoded(array) for array in batch.columns]
            nbytes += sum(array.nbytes for array in arrays)
            _check(nbytes, max(MOST_BYTES, BYTES_PER_BYTE * len(data)), "bytes", shown)
            columns = [_values(array, name, shown) for name, array in zip(names, arrays, strict=True)]
            rows += [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    except (pyarrow.ArrowException, OSError, ValueError, RecursionError) as error:
        reason = first_line(error).rstrip(".")
        raise InputError(f"{shown}: is not a Parquet file that can be read: {reason}.", "Write it again.") from error
    classes = class_names(file.schema_arrow.metadata)
    return name_classes(rows, classes, bad) if classes else (rows, range(1, len(rows) + 1))


def _batch_size(metadata: pyarrow.parquet.FileMetaData, length: int, shown: str) -> int:
    """Return how many rows to read at once: any of them may be as large as the largest column of its group."""
    values = nbytes = largest = 0
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for index in range(row_group.num_columns):
            chunk = row_group.column(index)
            values, nbytes = values + chunk.num_values, nbytes + chunk.total_uncompressed_size
            largest = max(largest, chunk.total_uncompressed_size)
    _check(max(values, metadata.num_rows), max(MOST_VALUES, VALUES_PER_BYTE * length), "values", shown)
    _check(nbytes, max(MOST_BYTES, BYTES_PER_BYTE * length), "bytes", shown)
    fewest, most = BATCH_ROWS
    return max(fewest, min(most, BATCH_BYTES // max(largest, 1)))


def _check(number: int, most: int, what: str, shown: str) -> None:
    if number > most:
        raise InputError(f"{shown}: stands for more than {most:,} {what}, far more than its own size.", _REMEDY)


def _decoded(array: pyarrow.Array) -> pyarrow.Array:
    """Return an array in which every value takes the space that it will have as a Python object."""
    import pyarrow

    return array.dictionary_decode() if pyarrow.types.is_dictionary(array.type) else array


def _values(column: pyarrow.Array, name: str, shown: str) -> list[Any]:
    import pyarrow

    try:
        return list(column.to_pylist())
    except UnicodeDecodeError as error:
        if not (pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)):
            raise _unreadable(column, name, shown, error) from error
        # As in text files: the bytes become lone surrogates, by which the rows are found.
        return [
            value.as_buffer().to_pybytes().decode("utf-8", errors="surrogateescape") if value.is_valid else None
            for value in column
        ]
    except (ValueError, OverflowError, LookupError, RecursionError) as error:
        raise _unreadable(column, name, shown, error) from error


def _unreadable(column: pyarrow.Array, name: str, shown: str, error: Exception) -> InputError:
    # Nanoseconds, years beyond 9999, unknown time zones, bytes that are no UTF-8.
    reason = first_line(error).rstrip(".")
    return InputError(
        f"{shown}: column '{name}' ({column.type}) cannot be read: {reason}.", "Write that column as text."
    )
