"""What in a run's folder was written by a run: only that may be deleted."""

from fnmatch import fnmatch
from pathlib import Path

from qlora_profiles.errors import UserError
from qlora_profiles.run_folder import ADAPTER_CONFIG, BASE_RECORD, COMPLETE_MARK, DIGESTS
from qlora_run.report.formatting import shown_path

WRITTEN = (
    BASE_RECORD,
    COMPLETE_MARK,
    DIGESTS,
    "README.md",
    "*.safetensors",
    "*.safetensors.index.json",
    ADAPTER_CONFIG,
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template.*",
    "additional_chat_templates",
    "*.jinja",
    "*.py",
    "optimizer.*",
    "scheduler.*",
    "scaler.*",
    "rng_state*",
    "trainer_state.json",
    "training_args.bin",
    "*.part",
)
"""Names in an adapter, a model or a checkpoint, as transformers, PEFT and we write them; ``.py`` is the base's code."""


def check_own(entry: Path) -> None:
    """Nothing, where ``entry`` is not there or holds only what runs write.

    Raises:
        UserError: it is a link to somewhere else, or holds somebody's own file.
    """
    if entry.is_symlink():
        raise UserError(
            f"{shown_path(entry)} is a link to {entry.readlink()}; --overwrite deletes nothing behind links",
            "remove the link, or --output ANOTHER-FOLDER",
        )
    if not entry.is_dir():
        return
    for inside in sorted(entry.rglob("*")):
        first = inside.relative_to(entry).parts[0]
        if inside.is_symlink() or not any(fnmatch(first, pattern) for pattern in WRITTEN):
            raise UserError(
                f"--overwrite would delete {shown_path(inside)}, which no run of ours wrote",
                "move it away, or --output ANOTHER-FOLDER",
            )
