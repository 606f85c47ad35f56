"""Tables of results: how files are read, and rows written as Markdown."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def read(name: str) -> Any:
    """Return the rows of a file of results; lines that begin with # are its configuration."""
    path = RESULTS / name
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return list(csv.DictReader(lines))


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table of Markdown; numbers have three digits."""
    cells = [[shown(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(head), ["---"] * len(head), *cells]) + "\n"


def shown(cell: Any) -> str:
    """Return a cell as text."""
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)


def median_of(rows: Sequence[Row], column: str) -> float:
    """Return the median of a column; rows without a number count as infinite."""
    return statistics.median(float(row[column]) if row[column] not in ("", "nan") else math.inf for row in rows)
