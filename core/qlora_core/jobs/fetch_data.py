"""``python -m qlora_core.jobs.fetch_data JOB``: the rows of a hub set, streamed into a file of this disk.

Prints one line of JSON: an empty object, or ``error``, ``fix`` and ``exit_code``.
"""

import heapq
import json
import os
import random
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from qlora_core.data.sources.stored import RECORD, ROWS, Stored, Wanted, folder_of, make_room
from qlora_core.session.stop_signals import install, interrupt
from qlora_profiles.data_source import DataSource, parse_source
from qlora_profiles.durable import write_whole
from qlora_profiles.errors import EXIT_INTERRUPTED, EXIT_OK, QloraRunError, UserError, first_line
from qlora_profiles.jobs import FetchDataJob
from qlora_profiles.machine_errors import internal, problem_of
from qlora_profiles.suggest import hint

USUAL_SPLITS = ("train", "training")
Rows = Iterator[dict[str, Any]]


def fetch(job: FetchDataJob) -> None:
    """Bring the rows of the job's set to this disk, in one move.

    Raises:
        UserError: it has no such config or split, none that is meant by itself, no rows, or cannot be streamed.
    """
    source = parse_source(job.source)
    wanted = Wanted(most=job.most, sample=job.sample, seed=job.seed)
    folder = folder_of(source, wanted)
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        config, split, stream, notes = _opened(source, job.revision)
        rows, seen = _write(part / ROWS, stream, wanted)
        if not rows:
            raise UserError(f"--data {source.whole}  its split {split} holds no rows", "another split")
        name = source.hub[0] if source.hub else source.place
        record = Stored(name=name, revision=job.revision, config=config, split=split, rows=rows, seen=seen, notes=notes)
        write_whole(part / RECORD, msgspec.json.encode(record).decode("utf-8"))
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    make_room(folder)


def _opened(source: DataSource, revision: str) -> tuple[str, str, Rows, tuple[str, ...]]:
    """The config, the split, a stream of its rows, and what was left out."""
    os.environ["USE_TORCH"] = "0"  # datasets would load torch, which no row needs here
    from datasets import get_dataset_config_names, load_dataset

    name = (source.hub or (source.place, None))[0]
    where = {"revision": revision, "streaming": True}
    try:
        configs = list(get_dataset_config_names(name, revision=revision))
        config, split = _config_and_split(source, configs)
        splits = load_dataset(name, config, **where)
    except QloraRunError:
        raise
    except Exception as error:  # of datasets, the hub's client, fsspec, pyarrow ...
        said = f"--data {source.whole}  cannot be streamed ({type(error).__name__}: {first_line(error)[:160]})"
        raise UserError(said, "hf download --repo-type dataset, then --data FOLDER") from error
    chosen = _split(source, split, list(splits))
    others = [other for other in splits if other != chosen]
    notes = (f"{name}: not read: the splits {', '.join(others)}",) if others else ()
    return config or "", chosen, iter(splits[chosen]), notes


def _config_and_split(source: DataSource, configs: list[str]) -> tuple[str | None, str]:
    """What ``CONFIG/SPLIT``, ``CONFIG`` or ``SPLIT`` means where these configs are."""
    first, slash, second = source.part.partition("/")
    several = len(configs) > 1 and "default" not in configs
    if first in configs:
        return first, second
    if slash or (several and first):
        raise _no_part(source, "config", first, configs)
    if several:
        raise UserError(f"--data {source.place}  has several configs: {_listed(configs)}", _example(source, configs))
    return None, first


def _split(source: DataSource, wanted: str, splits: list[str]) -> str:
    usual = [name for name in splits if name in USUAL_SPLITS]
    if wanted in splits:
        return wanted
    if wanted:
        raise _no_part(source, "split", wanted, splits)
    if usual or len(splits) == 1:
        return (usual or splits)[0]
    raise UserError(f"--data {source.whole}  has no split train: {_listed(splits)}", _example(source, splits))


def _no_part(source: DataSource, what: str, named: str, known: list[str]) -> UserError:
    said = f"--data {source.whole}  has no {what} {named}{hint(named, known)}: {_listed(known)}"
    return UserError(said, _example(source, known))


def _example(source: DataSource, names: list[str]) -> str | None:
    return f"--data {source.place}#{names[0]}" if names else None


def _listed(names: list[str]) -> str:
    return ", ".join(names[:12]) + (f", and {len(names) - 12:,} more" if len(names) > 12 else "")


def _write(path: Path, stream: Iterable[dict[str, Any]], wanted: Wanted) -> tuple[int, int]:
    """Write the wanted rows in their order, one a line; how many those are, and how many were seen."""
    kept: Iterable[str] = map(_line, stream)
    seen = rows = 0
    if wanted.most is not None and wanted.sample == "random":
        kept, seen = sampled(kept, wanted.most, wanted.seed)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for line in kept:
            file.write(line)
            rows += 1
            if rows == wanted.most:
                break
    return rows, max(rows, seen)


def sampled(lines: Iterable[str], most: int, seed: int) -> tuple[list[str], int]:
    """``most`` lines at random by ``seed``, in their order, and how many there were; no more are held at once."""
    keys = random.Random(seed)
    heap: list[tuple[float, int, str]] = []  # the largest key first
    seen = 0
    for line in lines:
        entry = (-keys.random(), seen, line)
        seen += 1
        if len(heap) < most:
            heapq.heappush(heap, entry)
        elif entry[0] > heap[0][0]:
            heapq.heapreplace(heap, entry)
    return [line for _, _, line in sorted(heap, key=lambda entry: entry[1])], seen


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, default=_plain) + "\n"


def _plain(value: Any) -> Any:
    """What JSON does not have: days and times as ISO text, pictures and sounds as nothing."""
    return value.isoformat() if hasattr(value, "isoformat") else None


def main() -> int:
    """Run the job given as JSON on the command line; without the other jobs' frame, which loads transformers."""
    install(interrupt)
    answer: dict[str, Any] = {}
    try:
        fetch(msgspec.json.decode(sys.argv[1], type=FetchDataJob))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:
        problem = problem_of(error) or internal(error)
        answer = {"error": problem.message, "fix": problem.fix, "exit_code": problem.exit_code}
    sys.stdout.write(json.dumps(answer) + "\n")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
