"""Versions of packages as numbers that compare."""


def version_numbers(version: str) -> tuple[int, ...]:
    """``"2.13.0+cu130"`` as (2, 13, 0): of the first three parts their digits; a part without any is left out."""
    parts = version.split("+")[0].split(".")
    digits = ["".join(ch for ch in part if ch.isdigit()) for part in parts[:3]]
    return tuple(int(part) for part in digits if part)
