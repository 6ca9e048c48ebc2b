"""Damages data files on purpose and plans with each: ``python bench/campaign_data.py --files 2000 --seed 1``.

Every file must be read, or be refused in plain words: exit code 0, 2 or 3, no traceback, no control character on the
screen, nothing slow, and the file as it was.
"""

import argparse
import contextlib
import csv
import io
import json
import os
import random
import re
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

SECONDS = 60
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
Damage = Callable[[bytes, random.Random], bytes]


class Fault(NamedTuple):
    """What went wrong with one file."""

    file: str
    what: str


def rows(count: int, generator: random.Random) -> list[dict[str, Any]]:
    """Good rows of one of several shapes."""
    shape = generator.randrange(4)
    made: list[dict[str, Any]] = []
    for number in range(count):
        asked, answer = f"Say {number}.", f"It is {number}, “so” to say: 你好."
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        pair = {"instruction": asked, "input": "", "output": answer}
        made.append([{"prompt": asked, "completion": answer}, pair, {"messages": messages}, {"text": answer}][shape])
    return made


def as_parquet(table: list[dict[str, Any]], generator: random.Random) -> bytes:
    """The rows as a Parquet file in some codec, sometimes with columns of odd types."""
    import datetime
    import decimal

    import pyarrow
    from pyarrow import parquet

    odd = {
        "when": datetime.datetime(2026, 1, 1),
        "price": decimal.Decimal("1.50"),
        "bytes": b"\xff\x00",
        "deep": {"a": [{"b": 1}]},
    }
    chosen = generator.sample(sorted(odd), generator.randrange(len(odd)))
    made = pyarrow.Table.from_pylist([row | {name: odd[name] for name in chosen} for row in table])
    out = io.BytesIO()
    parquet.write_table(made, out, compression=generator.choice(["snappy", "gzip", "zstd", "none", "brotli"]))
    return out.getvalue()


def base(generator: random.Random) -> tuple[str, bytes]:
    """A good file: the suffix and the bytes."""
    table = rows(generator.randrange(1, 12), generator)
    layout = generator.choice(["jsonl", "json", "pretty", "minified", "columns", "nested", "csv", "tsv", "parquet"])
    if layout == "parquet":
        return ".parquet", as_parquet(table, generator)
    if layout in ("csv", "tsv"):
        out = io.StringIO()
        writer = csv.DictWriter(out, list(table[0]), delimiter="," if layout == "csv" else "\t")
        writer.writeheader()
        writer.writerows({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in table)
        return f".{layout}", out.getvalue().encode()
    said: dict[str, Callable[[], str]] = {
        "jsonl": lambda: "\n".join(json.dumps(row, ensure_ascii=False) for row in table),
        "json": lambda: "[\n" + ",\n".join(map(json.dumps, table)) + "\n]",
        "pretty": lambda: json.dumps(table, indent=2),
        "minified": lambda: json.dumps(table, separators=(",", ":"), ensure_ascii=False),
        "columns": lambda: json.dumps({key: [row[key] for row in table] for key in table[0]}),
        "nested": lambda: json.dumps({"version": 1, generator.choice(["data", "rows", "odd"]): table}),
    }
    return ".jsonl" if layout == "jsonl" else ".json", said[layout]().encode()


def bit_flips(data: bytes, generator: random.Random) -> bytes:
    """Some bits turned over."""
    changed = bytearray(data)
    for _ in range(generator.choice([1, 1, 2, 8])):
        changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
    return bytes(changed)


def cut(data: bytes, generator: random.Random) -> bytes:
    """An end, or a beginning, is missing."""
    at = generator.randrange(len(data))
    return generator.choice([data[:at], data[at:]])


def spliced(data: bytes, generator: random.Random) -> bytes:
    """Some piece is missing, doubled or in the wrong place."""
    first, last = sorted(generator.randrange(len(data) + 1) for _ in range(2))
    piece, at = data[first:last], generator.randrange(len(data))
    kept = generator.choice([data, data[:first] + data[last:]])
    return generator.choice([kept[:at] + piece + kept[at:], data[:first] + data[last:]])


def inserted(data: bytes, generator: random.Random) -> bytes:
    """Something stands where it does not belong."""
    odd = [
        b"\0",
        b"\xff",
        b"\x1b[2J",
        b'"',
        b"{",
        b"}",
        b"]",
        b",",
        b"\r",
        b"\n",
        b"'",
        b"\xef\xbb\xbf",
        b"NaN",
        b"//x\n",
    ]
    odd += [b"[" * 2000, b"9" * 5000, b"\xe2\x80\xae", b"\xc2\x9b31m", b"\xed\xa0\x80", b"\\ud800", b"nan", b"\0" * 500]
    at = generator.randrange(len(data) + 1)
    return data[:at] + generator.choice(odd) + data[at:]


def swapped(data: bytes, generator: random.Random) -> bytes:
    """A text becomes a value of another type, or a key another key."""
    texts = list(re.finditer(rb'"[^"\\]*"', data))
    if not texts:
        return bit_flips(data, generator)
    chosen = generator.choice(texts)
    values = [b"null", b"1e999", b"-0", b"true", b"[]", b"{}", b'[{"a":1}]', b'"\\u001b[2J"', b"NaN", b'""', b'"role"']
    return data[: chosen.start()] + generator.choice(values) + data[chosen.end() :]


def encoded(data: bytes, generator: random.Random) -> bytes:
    """The same text in another encoding."""
    codec = generator.choice(["utf-16", "utf-16-le", "utf-16-be", "utf-32", "gbk", "latin-1", "utf-8-sig", "shift_jis"])
    return data.decode("utf-8", "replace").encode(codec, "replace")


DAMAGES: tuple[Damage, ...] = (bit_flips, cut, spliced, inserted, swapped, encoded)


def damaged_files(count: int, seed: int, folder: Path) -> Iterator[Path]:
    """Writes one damaged file after another; the same ones for the same seed."""
    generator = random.Random(seed)
    for number in range(count):
        suffix, data = base(generator)
        for _ in range(generator.choice([1, 1, 1, 2, 3])):
            data = generator.choice(DAMAGES)(data, generator) if data else data
        path = folder / f"damaged-{number}{suffix}"
        path.write_bytes(data)
        yield path


def fault_of(path: Path, work: Callable[[Path], tuple[int, str]]) -> Fault | None:
    """What is wrong with how ``work`` deals with a file: it returns the exit code and what was shown."""
    before, start = path.read_bytes(), time.monotonic()
    try:
        with _alarm(SECONDS):
            code, shown = work(path)
    except BaseException as error:  # whatever escapes is a fault
        return Fault(path.name, f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    steering = STEERING.search(shown.replace("\r\n", "\n"))
    wrong = (
        (code not in (0, 2, 3), f"exit code {code}: {shown[-2000:]}"),
        ("Traceback" in shown, f"a traceback: {shown[-2000:]}"),
        (steering is not None, f"a raw control character: {shown[:500]!a}"),
        (path.read_bytes() != before, "the file was changed"),
        (time.monotonic() - start > SECONDS, "too slow"),
    )
    return next((Fault(path.name, what) for holds, what in wrong if holds), None)


@contextlib.contextmanager
def _alarm(seconds: int) -> Iterator[None]:
    """TimeoutError after so many seconds, where the system has such a signal."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def late(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def plan_with(model: str, *options: str) -> Callable[[Path], tuple[int, str]]:
    """Plans in this process with the real command."""
    from qlora_run.__main__ import main as command

    def work(path: Path) -> tuple[int, str]:
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            code = command(["plan", "--model", model, "--data", str(path), "--device", "cpu", *options])
        return code, shown.getvalue()

    return work


def main() -> int:
    """Report every fault; 1 where there is one."""
    import qlora_core.demo

    demo_base = Path(qlora_core.demo.__file__).parent / "base"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default=str(demo_base))
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(damaged_files(options.files, options.seed, Path(folder))):
            skipping = ["--skip-bad-rows"] if number % 2 else []
            fault = fault_of(path, plan_with(options.model, *skipping))
            if fault is not None:
                faults += 1
                print(f"{fault.file}  {fault.what}")
    print(f"{options.files:,} damaged files, {faults:,} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
