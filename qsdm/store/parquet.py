"""Outcomes in Parquet, the form in which they are shipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from qsdm.outcome import SCHEMA, Outcome
from qsdm.store.files import StoreError, replace
from qsdm.store.rows import decode_rows, encode_row


def write_outcomes_parquet(
    path: Path, outcomes: Sequence[Outcome], columns: Mapping[str, Sequence[Any]]
) -> None:
    """Write one row per outcome, those of each protocol as a row group of their own.

    Programs that read the outcomes of one protocol, such as DuckDB, leave out the other row groups.

    A row has the digests, the stage that measured it, the number of pictures, the metrics with
    their standard errors, the digest of the pictures, and the whole outcome as JSON with its
    checksum. The table's metadata hold the version of the schema.

    Args:
        path: the file, replaced if it exists.
        outcomes: the rows; those of a protocol follow one another in the file, in this order.
        columns: further columns by name, each with one value per outcome.

    Raises:
        StoreError: it cannot be written.
    """
    import pyarrow
    import pyarrow.parquet

    names = list(dict.fromkeys(name for o in outcomes for name in o.metrics))
    rows = [
        {
            "qconfig": o.qconfig.digest,
            "protocol": o.protocol,
            "stage": o.provenance.get("stage", "measure"),
            "num_images": o.num_images,
        }
        | {name: column[i] for name, column in columns.items()}
        | {f"metric/{name}": o.metrics.get(name) for name in names}
        | {f"standard_error/{name}": o.standard_error(name) for name in names}
        | {"pictures": o.provenance.get("pictures"), "json": encode_row(o.to_json())}
        for i, o in enumerate(outcomes)
    ]
    metadata = {"qsdm_schema": str(SCHEMA)}
    table = pyarrow.Table.from_pylist(rows).replace_schema_metadata(metadata)
    groups: dict[str, list[int]] = {}
    for i, outcome in enumerate(outcomes):
        groups.setdefault(outcome.protocol, []).append(i)

    def fill(partial: Path) -> None:
        with pyarrow.parquet.ParquetWriter(
            partial, table.schema, compression="zstd", write_page_checksum=True
        ) as writer:
            for members in groups.values():
                writer.write_table(table.take(members))

    replace(path, fill)


def read_outcomes_parquet(path: Path) -> list[Outcome]:
    """Read the outcomes; damaged rows are skipped, with a warning that counts them.

    A run asks for the shipped ones many times, and decoding them takes a second: they are decoded
    again only if the file was replaced.

    Args:
        path: what `write_outcomes_parquet` wrote.

    Raises:
        StoreError: the file is damaged as a whole.
    """
    status = path.stat()
    return list(_decoded(path, (status.st_ino, status.st_mtime_ns, status.st_size)))


@lru_cache(maxsize=4)  # a model and those whose labels it learns from
def _decoded(path: Path, version: tuple[int, ...]) -> tuple[Outcome, ...]:  # noqa: ARG001
    import pyarrow
    import pyarrow.parquet

    try:
        # Not read_table: for one file, it imports pyarrow's datasets and pandas.
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read(columns=["json"])
        texts = table["json"].cast(pyarrow.binary()).to_pylist()
    except (OSError, pyarrow.ArrowException, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise StoreError(
            f"{path} is damaged or not a table of outcomes ({reason}): restore it, "
            "for example with git checkout"
        ) from error
    return tuple(decode_rows(texts, Outcome.from_json, path, "outcomes"))
