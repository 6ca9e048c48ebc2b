"""Which rows are held out: the same ones for the same seed, on every machine."""

import random
from collections.abc import Sequence
from math import ceil
from typing import TypeVar

from qlora_profiles.errors import UserError

MOST_HELD_OUT_ROWS = 200  # of a share, set by hand; more tells little and costs evaluation time
FEWEST_ROWS = 10  # below which a share holds nothing out
Item = TypeVar("Item")


def split(rows: Sequence[Item], val_size: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Rows to train on and rows held out, both in file order.

    ``val_size`` below 1 is a share of the rows, else a number of rows.

    Raises:
        UserError: as ``held_out_rows``.
    """
    held = held_out_rows(len(rows), val_size)
    chosen = set(random.Random(seed).sample(range(len(rows)), held))
    train = [row for index, row in enumerate(rows) if index not in chosen]
    return train, [row for index, row in enumerate(rows) if index in chosen]


def held_out_rows(rows: int, val_size: float) -> int:
    """How many of ``rows`` are held out.

    Raises:
        UserError: ``val_size`` is neither a share nor a number of rows, or leaves nothing to train on.
    """
    if val_size < 0 or (val_size >= 1 and val_size != int(val_size)):
        raise UserError(f"--val-size {val_size:g}: want a share below 1, or a whole number of rows", "--val-size 0.05")
    if val_size >= 1:
        held = int(val_size)
    else:
        held = min(ceil(rows * val_size), MOST_HELD_OUT_ROWS) if rows >= FEWEST_ROWS else 0
    if held >= rows:
        raise UserError(
            f"--val-size {val_size:g}: nothing to train on is left of {rows:,} rows", f"--val-size {rows // 10}"
        )
    return held
