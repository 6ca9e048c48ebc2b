"""Every name in a run's folder, once: who writes or looks for a file there takes its name from here.

``adapter_config.json`` and ``adapter_model.safetensors`` are PEFT's names, ``checkpoint-N`` is transformers'.
"""

import re
from collections.abc import Iterator
from pathlib import Path

PLAN = "plan.json"
PLAN_COPY = "plan.copy.json"
"""The plan as its last start wrote it: read where ``plan.json`` is gone or damaged."""
EVENTS = "events.jsonl"
"""What the core says while it works: :mod:`qlora_profiles.events`."""
LOG = "run.log"
"""What the core's process prints."""
RUNNING = ".running"
"""Lies there while a run writes: process id and start time of its launcher, which holds it locked."""
CORE_RUNNING = ".running-core"
"""The same of the core: it may outlive its launcher."""

TRAINING_CONFIG = "training_config.json"
REJECTED_ROWS = "rejected.jsonl"
DEMO_RESULT = "demo_result.json"
READ_BACK_JOB = ".read_back.json"
"""Lies there while what was saved is read back."""
READ_BACK_ROWS = "read_back.json"
"""Rows as they were trained on, for whoever reads something saved back later."""

ADAPTER = "lora_adapter"
BEST_ADAPTER = "best_adapter"
BEST_ADAPTER_PART = f"{BEST_ADAPTER}.part"
BEST_RECORD = "best.json"
"""In it: of which step the adapter is."""
MERGED_MODEL = "final_model"
"""The adapter merged into its base; after full training the model itself."""
MERGED_PART = f"{MERGED_MODEL}.part"
"""A merge that is not finished yet."""
BASE_RECORD = "base.json"
"""In the adapter and in the merged model: what they were trained on."""
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

DIGESTS = "digests.json"
"""In each of these: what its weights and tokenizer were when they were written."""

CHECKPOINT_PREFIX = "checkpoint-"
COMPLETE_MARK = "complete.json"
"""In a checkpoint, written last: without it the checkpoint does not count."""
PREFLIGHT_PREFIX = "preflight-"
"""Of a folder that exists for a moment of the preflight."""
TRACKER_LOGS = "runs"
"""Where transformers lets TensorBoard write."""

RESULTS = (ADAPTER, BEST_ADAPTER, MERGED_MODEL)
LEFT = (
    *(*RESULTS, BEST_ADAPTER_PART, MERGED_PART),
    *(TRAINING_CONFIG, REJECTED_ROWS, READ_BACK_ROWS, PLAN, PLAN_COPY, EVENTS, LOG),
)
"""What a run leaves beside its checkpoints, and ``--overwrite`` deletes."""
OTHERS = (RUNNING, CORE_RUNNING, READ_BACK_JOB, DEMO_RESULT, TRACKER_LOGS)


def checkpoint_folder(output: Path, step: int) -> Path:
    """The folder of the checkpoint after optimizer step ``step``."""
    return output / f"{CHECKPOINT_PREFIX}{step}"


def checkpoint_step(folder: Path) -> int:
    """N of ``checkpoint-N``; -1 for another name."""
    match = re.fullmatch(rf"{CHECKPOINT_PREFIX}([0-9]+)", folder.name)
    return int(match[1]) if match else -1


def checkpoints(output: Path) -> Iterator[Path]:
    """What is named as a checkpoint of a step in ``output``, whole or not, in any order."""
    return (path for path in output.glob(f"{CHECKPOINT_PREFIX}*") if checkpoint_step(path) >= 0)


def results(output: Path) -> Iterator[Path]:
    """What was trained in ``output`` and is there: adapters, a merged model, checkpoints."""
    yield from (path for name in RESULTS if (path := output / name).exists())
    yield from checkpoints(output)


def left(output: Path) -> list[Path]:
    """What a run may have left in ``output``, there or not."""
    return [*(output / name for name in LEFT), *checkpoints(output)]


def is_ours(name: str) -> bool:
    """Whether a run writes an entry called ``name`` in its folder."""
    return name in (*LEFT, *OTHERS) or name.startswith(PREFLIGHT_PREFIX) or checkpoint_step(Path(name)) >= 0
