"""One entry of ``--data``: where rows lie, which part of that place, and how many of its rows are taken.

``PLACE[#PART][:SHARE]``, as in ``a.jsonl:0.3``, ``b.csv:500``, ``OWNER/NAME#CONFIG/SPLIT``, ``rows.zip#a.jsonl``.
"""

import re
from contextlib import suppress
from pathlib import Path

from msgspec import Struct, structs

from qlora_profiles.errors import UserError

HUB_PREFIX = re.compile(r"(?:hf://datasets/|https://[\w.-]+/datasets/)", re.IGNORECASE)
HUB_NAME = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?/?")
FILE_SUFFIX = re.compile(
    r"\.(jsonl|ndjson|json|csv|tsv|parquet|arrow|xlsx|xls|ods|numbers|txt|md|gz|zip|tgz|tar|bz2|xz|zst)", re.IGNORECASE
)
GLOB_SIGNS = "*?["
_SHARE = re.compile(r"(?P<rest>.+):(?P<share>[^:/\\#]*)")
_DRIVE = re.compile(r"[A-Za-z]")


class DataSource(Struct, frozen=True, kw_only=True):
    """Where rows lie.

    ``part`` is a split, a sheet, a file in a zip, or CONFIG/SPLIT of a hub set; empty where the usual one is meant.
    ``share`` is a fraction of the rows (a ``float`` below 1), a number of rows (an ``int``), or ``None`` for all.
    """

    place: str
    part: str = ""
    share: float | int | None = None

    @property
    def whole(self) -> str:
        """The place and its part, as they are written."""
        return self.place + (f"#{self.part}" if self.part else "")

    @property
    def text(self) -> str:
        """The entry as it is written."""
        return self.whole + (f":{self.share!r}" if self.share is not None else "")

    @property
    def path(self) -> Path:
        """The place as a path of this disk."""
        return Path(self.place).expanduser()

    @property
    def is_pattern(self) -> bool:
        """Whether the place names files by a pattern such as ``data/*.jsonl``."""
        return any(sign in self.place for sign in GLOB_SIGNS) and not _exists(self.place)

    @property
    def hub(self) -> tuple[str, str | None] | None:
        """OWNER/NAME of a set on the hub and its revision; ``None`` for what is, or should be, on this disk.

        A bare OWNER/NAME is one where neither it nor a folder OWNER is here, and it ends like no file.
        """
        prefix = HUB_PREFIX.match(self.place)
        named = HUB_NAME.fullmatch(self.place[prefix.end() :] if prefix else self.place)
        if named is None or (not prefix and not self._may_be_hub()):
            return None
        return named["name"], named["revision"]

    def _may_be_hub(self) -> bool:
        owner, slash, name = self.place.partition("/")
        outside = bool(slash) and not owner.startswith((".", "~")) and not FILE_SUFFIX.fullmatch(Path(name).suffix)
        return outside and not _exists(self.place) and not _exists(owner)

    def in_full(self) -> "DataSource":
        """The same with its place on this disk in full, so that it is found from any folder."""
        if self.hub or not (self.is_pattern or _exists(self.place)):
            return self
        return structs.replace(self, place=str(self.path.absolute()))


def parse_source(text: str) -> DataSource:
    """An entry of ``--data``; a file of that very name wins over any other reading.

    Raises:
        UserError: a share that cannot be.
    """
    if _exists(text):
        return DataSource(place=text)
    rest, share = _share_of(text)
    place, mark, part = rest.rpartition("#")
    if not mark or not place or _exists(rest):
        return DataSource(place=rest, share=share)
    return DataSource(place=place, part=part, share=share)


def _share_of(text: str) -> tuple[str, float | int | None]:
    found = _SHARE.fullmatch(text)
    if found is None or _DRIVE.fullmatch(found["rest"]):
        return text, None
    rest, written = found["rest"], found["share"]
    if written.isascii() and written.isdigit():
        return rest, _rows(text, rest, int(written))
    if re.fullmatch(r"\d*\.\d*", written, re.ASCII) and written != ".":
        return rest, _fraction(text, rest, float(written))
    if not _exists(rest.rpartition("#")[0] or rest) and not _exists(rest):
        return text, None
    raise UserError(f"--data {text}: {written or 'nothing'} is no share of it", _ways(rest))


def _rows(text: str, rest: str, count: int) -> int:
    if count < 1:
        raise UserError(f"--data {text}: no row would be taken", _ways(rest))
    return count


def _fraction(text: str, rest: str, share: float) -> float | None:
    if not 0 < share <= 1:
        what = "over 1" if share > 1 else "nothing"
        raise UserError(f"--data {text}: a share of {share:g} is {what}; want above 0, at most 1", _ways(rest))
    return share if share < 1 else None


def _ways(rest: str) -> str:
    return f"{rest}:0.3 for 30% of its rows, or {rest}:500 for 500 rows"


def _exists(text: str) -> bool:
    with suppress(OSError, ValueError, RuntimeError):
        return Path(text).expanduser().exists()
    return False
