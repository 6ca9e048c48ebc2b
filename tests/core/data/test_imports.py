"""The launcher plans with this package: it must not load what the launcher may not."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HEAVY = {"torch", "transformers", "datasets", "numpy", "pyarrow", "peft", "accelerate"}
PROGRAM = """
import sys
from pathlib import Path
from qlora_core.data import ChatTokenizer, ReadOptions, describe, read_data
early = {name.partition(".")[0] for name in sys.modules}
assert not early & {"tokenizers", "jinja2"}, "loaded before they are needed"
data = read_data(ReadOptions(path=sys.argv[2]))
tokenizer = ChatTokenizer.from_folder(Path(sys.argv[1]))
facts = describe(data, tokenizer.count_tokens(data.conversations, 64).token_counts, 64, tokenizer=tokenizer)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_planning_loads_nothing_heavy(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    data = tmp_path / "my.jsonl"
    data.write_text('{"prompt": "Hi", "completion": "Hello"}', encoding="utf-8")
    command = [sys.executable, "-c", PROGRAM, str(model_folder("chatml")), str(data)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stdout.split())
