"""predictions.parquet: what a probe predicted, one row each, beside what was true; read by anything that reads Parquet."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokens.io import parsing, replacing


@runtime_checkable
class Predicts(Protocol):
    """A probe whose predictions are kept, and compared one by one with those of random-weights twins."""

    def predictions(self) -> dict[str, np.ndarray]: ...

    def compare(self, twins: Sequence[dict[str, np.ndarray]]) -> dict[str, float]: ...


def write_predictions(path: Path, columns: dict[str, np.ndarray]) -> None:
    """Write columns of equal length."""
    with replacing(path) as file:
        pq.write_table(pa.table(columns), file, compression="zstd", write_page_checksum=True)


def read_predictions(path: Path) -> dict[str, np.ndarray]:
    """The columns of a file, by name.

    Raises:
        DamagedFile: other bytes than were written.
    """
    content = pa.BufferReader(path.read_bytes())
    with parsing(path):
        table = pq.read_table(content, page_checksum_verification=True)
        return {name: table[name].to_numpy() for name in table.column_names}
