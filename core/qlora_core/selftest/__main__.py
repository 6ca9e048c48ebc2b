"""``python -m qlora_core.selftest [NAME ...]``: run the tests named (all if none) and print a JSON line for each.

Before each test stands a line ``{"began": NAME}``: whoever reads knows which one was at work when the process died.
Whatever the libraries print goes to standard error.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import IO, Any

from qlora_core.selftest.registry import TESTS, Unavailable, test_named


def main(names: Sequence[str]) -> int:
    """Run the tests one after another; a failure is reported and the next one runs."""
    unknown = [name for name in names if name not in TESTS]
    if unknown:
        sys.stderr.write(f"unknown test {unknown[0]}; there are {', '.join(TESTS)}\n")
        return 2
    with _own_channel() as channel:
        for name in names or TESTS:
            _say(channel, {"began": name})
            _say(channel, {"test": name, **outcome(name)})
    return 0


def _own_channel() -> IO[str]:
    """Standard output for us alone: from here on its descriptor leads to standard error."""
    own = os.dup(1)
    sys.stdout.flush()
    os.dup2(2, 1)
    return os.fdopen(own, "w", encoding="utf-8", newline="\n")


def _say(channel: IO[str], value: dict[str, Any]) -> None:
    channel.write(json.dumps(value) + "\n")
    channel.flush()


def outcome(name: str) -> dict[str, Any]:
    """``state`` (ok, fail or unavailable), ``seconds``, and what was found or what went wrong in one line.

    A device without free memory proves nothing of the operation: that is no failure of it.
    """
    start = time.perf_counter()
    try:
        found = {"state": "ok", "found": test_named(name)()}
    except Unavailable as reason:
        found = {"state": "unavailable", "said": str(reason)}
    except Exception as error:
        full = "out of memory" in str(error).lower()
        found = {"state": "unavailable" if full else "fail", "said": _in_one_line(error)}
    return {**found, "seconds": round(time.perf_counter() - start, 2)}


def _in_one_line(error: Exception) -> str:
    """The error's name and the line of it that says most: the last error of a chain that others wrapped."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    inner = [line for line in lines if "Error: " in line]
    said = (inner or lines or [""])[-1 if inner else 0]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
