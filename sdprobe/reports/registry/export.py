"""``export``: every number of many runs in long form, a row per number, as Parquet and as CSV."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sdprobe.reports.registry.entries import Entry
from sdprobe.reports.tracked import COLUMNS, long_table
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import replacing, write_rows

# column → its type, first those that say which run a number is of
TYPES: dict[str, type] = {
    "run": str, "probe": str, "model": str, "weights": str, "seed": int, "prompt": str, "image_size": int, "test_images": int,
    "dataset_fingerprint": str, "config_hash": str,
    "condition": str, "layer": str, "timestep": int, "mitigation": str, "metric": str, "group": str,
    "value": float, "low": float, "high": float, "n": int, "seeds": int,
}  # fmt: skip
OF_RUN = tuple(TYPES)[: -len(COLUMNS)]
FORMATS = (".parquet", ".csv")


def export(entries: Sequence[Entry], path: Path) -> tuple[list[Path], int]:
    """Write the numbers of the finished runs; returns the paths and the number of rows.

    Args:
        entries: runs.
        path: with the extension ``.parquet`` or ``.csv``; without one both are written.

    Raises:
        InputError: another extension, or no finished run.
    """
    if path.suffix and path.suffix not in FORMATS:
        raise InputError(f"Expected a file that ends in .parquet or .csv, but got '{path}'. Use no ending for both.")
    finished = [entry for entry in entries if entry.state == "finished"]
    if not finished:
        raise InputError(f"Expected finished runs, but got {len(entries)} runs of which none is finished. ls says why.")
    if not path.absolute().parent.is_dir():
        raise InputError(f"Expected a file in a folder that exists, but got '{path}'. Create its folder.")
    rows = [row for entry in finished for row in _rows(entry)]
    paths = [path] if path.suffix else [path.with_name(path.name + ending) for ending in FORMATS]
    for target in paths:
        (_write_parquet if target.suffix == ".parquet" else _write_csv)(target, rows)
    return paths, len(rows)


def _rows(entry: Entry) -> Iterator[list[Any]]:
    run = entry.run
    assert run is not None
    meta = run.meta | {"run": entry.name, "probe": run.kind, "test_images": run.meta["images"].get("test")}
    own = [meta.get(name) for name in OF_RUN]
    for numbers in long_table(run):
        yield [_as(kind, value) for kind, value in zip(TYPES.values(), own + numbers, strict=True)]


def _as(kind: type, value: Any) -> Any:
    """A value of a column's type; None if it is of another."""
    if kind is str:
        return None if value is None else str(value)
    return kind(value) if isinstance(value, int | float) and kind(value) == value else None


def _write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    write_rows(path, [tuple(TYPES), *rows])


def _write_parquet(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in TYPES.items()])
    columns = list(zip(*rows, strict=True)) or [()] * len(TYPES)
    table = pa.table([pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)], schema=schema)
    with replacing(path) as file:
        pq.write_table(table, file, compression="zstd")
