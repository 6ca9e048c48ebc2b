"""Where a model's tokenizer files lie: its folder, or the hub's cache after fetching only them."""

from pathlib import Path

from qlora_profiles.errors import UserError
from qlora_profiles.settings import Recipe, Run

FILES = ["*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt"]
CODE = ["*.py"]
HEAVY = ["*.safetensors.index.json", "*.bin.index.json"]


def tokenizer_folder(recipe: Recipe, run: Run) -> Path:
    """The folder that holds the tokenizer of the recipe's model, fetched from the hub where it is not on this disk.

    Raises:
        UserError: a hub id that is neither on this disk nor reachable.
    """
    on_disk = tokenizer_on_disk(recipe, run)
    if on_disk is not None:
        return on_disk
    try:
        return _snapshot(recipe, run, local_files_only=False)
    except Exception as error:  # the hub client raises its own, httpx's and the system's errors for one cause
        raise UserError(
            f"--model {recipe.model}  its tokenizer is not on this disk, hub unreachable ({type(error).__name__})",
            "a local folder, HF_ENDPOINT=<mirror>, or: qlora-run demo",
        ) from error


def tokenizer_on_disk(recipe: Recipe, run: Run) -> Path | None:
    """The same folder without asking any network; ``None`` where it is not, or not wholly, on this disk."""
    for name in filter(None, (recipe.model, run.local_dir)):
        folder = Path(name).expanduser()
        if (folder / "config.json").is_file():
            return folder
    try:
        cached = _snapshot(recipe, run, local_files_only=True)
    except (OSError, ValueError):  # not there, cut short, or no hub id at all
        return None
    return cached if (cached / "tokenizer.json").is_file() else None


def _snapshot(recipe: Recipe, run: Run, *, local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    folder = snapshot_download(
        recipe.model,
        revision=recipe.revision,
        cache_dir=run.cache,
        allow_patterns=FILES + (CODE if run.trust_remote_code else []),
        ignore_patterns=HEAVY,
        local_files_only=local_files_only,
    )
    return Path(folder)
