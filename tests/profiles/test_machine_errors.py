"""What the system's errors mean to a person, and the last net."""

import errno
from pathlib import Path

import pytest

from qlora_profiles.errors import EnvironmentProblem, QloraRunError, UserError
from qlora_profiles.machine_errors import internal, problem_of


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), "the disk is full: /tmp/x ("),
        (RuntimeError("safetensors: I/O error: No space left on device (os error 28)"), "the disk is full: "),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
            "could not be written whole",
        ),
        (OSError(errno.EFBIG, "File too large"), "may not grow larger"),
        (OSError(errno.EMFILE, "Too many open files"), "too many open files"),
        (MemoryError(), "main memory ran out"),
        (RuntimeError("can't start new thread"), "main memory ran out"),
        (ImportError("libx.so: failed to map segment from shared object"), "main memory ran out"),
        (ImportError("No module named 'x'"), "cannot be imported: No module named 'x'"),
        (OSError(5, "Input/output error"), "Input/output error"),
    ],
)
def test_errors_of_the_machine_are_named(tmp_path: Path, error: Exception, words: str) -> None:
    problem = problem_of(error, tmp_path)
    assert isinstance(problem, EnvironmentProblem)
    assert words in problem.message
    assert problem.fix


def test_what_caused_an_error_counts() -> None:
    error = KeyError("x")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device", "/tmp/x")
    assert "the disk is full" in str(problem_of(error))
    assert isinstance(problem_of(RecursionError()), UserError)
    assert problem_of(KeyError("x")) is None


def test_a_fault_of_ours_is_one_line_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_RUN_CACHE", str(tmp_path))
    try:
        raise ValueError("a bug\nwith hf_abcdefghijklmnop in it")
    except ValueError as error:
        problem: QloraRunError = internal(error)
    (kept,) = (tmp_path / "faults").iterdir()
    assert str(problem).startswith(f"a fault of qlora-run: ValueError: a bug (the whole story: {kept})")
    text = kept.read_text(encoding="utf-8")
    assert "Traceback" in text
    assert "hf_abcdefghijklmnop" not in text
