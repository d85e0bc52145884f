"""predictions.parquet: what a probe predicted, one row each, beside what was true; read by anything that reads Parquet."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


@runtime_checkable
class Predicts(Protocol):
    """A probe whose predictions are kept, and compared one by one with those of random-weights twins."""

    def predictions(self) -> dict[str, np.ndarray]: ...

    def compare(self, twins: Sequence[dict[str, np.ndarray]]) -> dict[str, float]: ...


def write_predictions(path: Path, columns: dict[str, np.ndarray]) -> None:
    """Write columns of equal length at once or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    try:
        pq.write_table(pa.table(columns), temporary, compression="zstd")
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_predictions(path: Path) -> dict[str, np.ndarray]:
    """The columns of a file, by name."""
    table = pq.read_table(path)
    return {name: table[name].to_numpy() for name in table.column_names}
