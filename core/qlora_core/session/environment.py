"""The environment that a process computes in: what must be said before torch is imported, and installed versions."""

import os
from importlib.metadata import PackageNotFoundError, version

from qlora_profiles.plan import RunPlan

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "tokenizers",
    "qlora-run",
    "triton",
    "unsloth",
    "unsloth_zoo",
)


def set_environment(plan: RunPlan) -> None:
    """What must be said before torch is imported: the cards, threads of the tokenizer, the allocator's ways.

    Where there are more cards than the plan's, they are hidden: transformers would multiply the batch by all it sees.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    execution = plan.execution_values()
    alone = plan.report.showing(execution.devices) if execution.device == "cuda" else None
    if alone is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = alone
    if execution.dataset_workers:
        os.environ["RAYON_NUM_THREADS"] = str(execution.dataset_workers)
    if execution.expandable_segments:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def versions() -> dict[str, str]:
    """Installed versions of what the result depends on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
