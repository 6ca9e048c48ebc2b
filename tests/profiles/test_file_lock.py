"""A claimed file: one holder whoever starts when, named, and let go of with its death."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.children import PATIENCE_SECONDS, python

from qlora_profiles import file_lock
from qlora_profiles.file_lock import Taken, claimed

ROUNDS, PROCESSES = 5, 8
STARTS = """
import sys, time
from pathlib import Path
from qlora_profiles.file_lock import Taken, claimed
import psutil
folder, first = Path(sys.argv[1]), float(sys.argv[2])
for number in range(int(sys.argv[3])):
    begin = first + number * 0.5
    time.sleep(max(0.0, begin - time.time()))
    try:
        with claimed(folder / str(number)):
            inside = folder / f"inside-{number}"
            inside.touch(exist_ok=False)
            (folder / f"held-{number}").touch()
            time.sleep(max(0.05, begin + 0.3 - time.time()))
            inside.unlink()
    except Taken:
        pass
"""
HOLDS = """
import sys, time
from pathlib import Path
from qlora_profiles.file_lock import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_of_forty_starts_at_once_one_holds_each_file(tmp_path: Path) -> None:
    first = time.time() + 2.0
    words = [str(tmp_path), str(first), str(ROUNDS)]
    starts = [subprocess.Popen([*python(STARTS), *words]) for _ in range(PROCESSES)]
    assert [start.wait(PATIENCE_SECONDS) for start in starts] == [0] * PROCESSES
    assert all((tmp_path / f"held-{number}").exists() for number in range(ROUNDS))
    assert not any((tmp_path / str(number)).exists() for number in range(ROUNDS))


def test_the_holder_is_named_and_its_death_lets_go(tmp_path: Path) -> None:
    holder = subprocess.Popen([*python(HOLDS), str(tmp_path / "lock")], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline().strip() == b"held"
    with pytest.raises(Taken) as caught, claimed(tmp_path / "lock"):
        pass
    assert caught.value.pid == holder.pid
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with claimed(tmp_path / "lock", patience_seconds=PATIENCE_SECONDS) as locked:
        assert locked
        assert (tmp_path / "lock").read_text(encoding="utf-8").split()[0] == str(os.getpid())


def test_where_files_cannot_be_locked_the_name_alone_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = subprocess.Popen([*python(HOLDS), str(tmp_path / "lock")], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()

    def no_locks(descriptor: int) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(file_lock, "_lock", no_locks)
    with pytest.raises(Taken), claimed(tmp_path / "lock"):
        pass
    holder.send_signal(signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    with claimed(tmp_path / "lock") as locked:
        assert not locked
