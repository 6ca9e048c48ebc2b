"""What errors of the system and of libraries mean to a person: a full disk, no memory, no home; and the last net."""

import errno
import re
import shutil
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from qlora_profiles.errors import EnvironmentProblem, QloraRunError, UserError, first_line
from qlora_profiles.places import cache_folder
from qlora_profiles.units import GIB

FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
FULL_WORDS = ("No space left on device", "Disk quota exceeded", "os error 28", "os error 122", "os error 112")
"""As libraries in Rust and C++ say it, who keep no number."""
CUT_WORDS = ("PytorchStreamWriter failed", "unexpected pos")
"""torch could not write on, and does not say why."""
TOO_LARGE_WORDS = ("File too large", "os error 27")
MEMORY_WORDS = (
    "Cannot allocate memory",
    "failed to map segment",
    "std::bad_alloc",
    "can't start new thread",
    "os error 12)",
)
OOM_WORDS = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory", "not enough memory")
"""As torch and CUDA say it, of a card or of main memory."""
CARD_WORDS = ("CUDA", "CUBLAS", "HIP")
UNWRITABLE = 74
"""How the core ends (as sysexits' EX_IOERR) where the disk does not even take its last word."""
FREE_SPACE = "free some space there; the same command then goes on"


def problem_of(error: BaseException, where: Path | None = None) -> QloraRunError | None:
    """An unforeseen error in a person's words, where it has some; ``where`` is the folder that was worked in."""
    for each in _chain(error):
        if isinstance(each, QloraRunError):
            return each
        problem = _of_disk(each, where) or _of_memory(each) or _of_input(each)
        if problem is not None:
            return problem
    return _of_file(error) if isinstance(error, OSError) else None


def internal(error: BaseException) -> EnvironmentProblem:
    """A fault of ours in one line; the traceback lies in a file that the line names."""
    path = _kept("".join(traceback.format_exception(error)))
    story = f" (the whole story: {path})" if path else ""
    return EnvironmentProblem(f"a fault of qlora-run: {_short(error)}{story}", "qlora-run doctor --report FILE")


def disk_full(place: Path) -> EnvironmentProblem:
    """The disk of ``place`` takes nothing more."""
    return EnvironmentProblem(f"the disk is full: {place} ({_free(place)})", FREE_SPACE)


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"[:300]


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what caused it."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _of_disk(error: BaseException, where: Path | None) -> QloraRunError | None:
    number = error.errno if isinstance(error, OSError) else None
    place = _place(error) or where or Path.cwd()
    if number in FULL or _says(error, FULL_WORDS):
        return disk_full(place)
    if number == errno.EFBIG or _says(error, TOO_LARGE_WORDS):
        return EnvironmentProblem(f"{place}: a file there may not grow larger (file size limit)", "ulimit -f unlimited")
    if _says(error, CUT_WORDS):
        return EnvironmentProblem(f"{place}: a file could not be written whole ({_free(place)})", FREE_SPACE)
    if number in (errno.EROFS, errno.EIO, getattr(errno, "ESTALE", errno.EIO)):
        return EnvironmentProblem(f"{place}: {first_line(error)}", "--output on another disk")
    if number in (errno.EMFILE, errno.ENFILE):
        return EnvironmentProblem("too many open files for this system's limit", "ulimit -n 4096")
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out in arithmetic, on the card or beside it."""
    return isinstance(error, MemoryError) or _says(error, OOM_WORDS)


def _of_memory(error: BaseException) -> QloraRunError | None:
    limited = isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.EAGAIN)
    if not limited and not is_out_of_memory(error) and not _says(error, MEMORY_WORDS):
        return None
    if _says(error, CARD_WORDS):
        return EnvironmentProblem(
            f"the card's memory ran out ({first_line(error)[:120]})",
            "close what else uses it, or --load-in-4bit, or --device cpu",
        )
    return EnvironmentProblem(
        f"main memory ran out ({first_line(error)[:120]})",
        "close other programs, or ulimit -v unlimited",
    )


def _of_input(error: BaseException) -> QloraRunError | None:
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return UserError("a path begins with ~, and there is no such home folder", "the path in full")
    if isinstance(error, RecursionError):
        return UserError("something that was given is nested too deeply to be read", "qlora-run help")
    if isinstance(error, UnicodeEncodeError):
        return UserError(f"text that is no Unicode: {error.object[error.start : error.end]!r}", "another value")
    if isinstance(error, ImportError):
        return EnvironmentProblem(f"a package cannot be imported: {first_line(error)[:200]}", "qlora-run doctor")
    return None


def _of_file(error: OSError) -> QloraRunError:
    if error.filename is None:
        return EnvironmentProblem(f"the system refused: {error.strerror or first_line(error)}", "qlora-run doctor")
    return EnvironmentProblem(f"{error.filename}: {error.strerror or first_line(error)}", "another place or name")


def _says(error: BaseException, words: tuple[str, ...]) -> bool:
    text = str(error)
    return any(word in text for word in words)


def _place(error: BaseException) -> Path | None:
    """The file that an error names."""
    name = error.filename2 or error.filename if isinstance(error, OSError) else None
    return Path(name) if isinstance(name, str) else None


def _free(place: Path) -> str:
    """How much is free on the disk of a place that may not exist."""
    with suppress(OSError):
        there = next(p for p in (place.absolute(), *place.absolute().parents) if p.exists())
        return f"{shutil.disk_usage(there).free / GIB:.2f} GiB free"
    return "how much is free cannot be told"


def _kept(text: str) -> Path | None:
    """Where a traceback was written; ``None`` where no place takes it. Tokens in addresses are no part of it."""
    clean = re.sub(r"(hf_|sk-)[A-Za-z0-9]{8,}", r"\1...", text)
    for folder in (cache_folder, lambda name: Path(tempfile.gettempdir()) / f"qlora-run-{name}"):
        with suppress(OSError, RuntimeError, UnicodeError):
            place = folder("faults")
            place.mkdir(parents=True, exist_ok=True)
            path = place / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.monotonic_ns() % 10**6:06}.txt"
            path.write_text(clean, encoding="utf-8", errors="replace")
            return path
    return None
