"""``merge``: adapter and base as one model."""

from pathlib import Path
from typing import Any

from qlora_profiles.errors import UserError
from qlora_profiles.jobs import MergeJob
from qlora_profiles.run_folder import MERGED_MODEL
from qlora_run.cli.commands import Command
from qlora_run.commands.target import adapter_in, cache_of, target_of
from qlora_run.report.formatting import quoted, shown_path
from qlora_run.supervise.child import run_job


def run(command: Command) -> int:
    """Hand the merge over to the core; its exit code. Raises UserError as ``merge_job``."""
    return run_job("qlora_core.jobs.merge", merge_job(command.options, set(command.given_options)))


def merge_job(options: dict[str, Any], given: set[str]) -> MergeJob:
    """The options as a job. Raises UserError: no adapter, or a place that is taken or cannot be written."""
    target = target_of(options)
    adapter, base = adapter_in(target, options)
    output = Path(options["output"]).expanduser() if options.get("output") else adapter.parent / MERGED_MODEL
    _check_free(output)
    names = [n for n in ("dtype", "trust_remote_code", "validate", "test_prompt") if n in given]
    places: dict[str, Any] = {"target": str(target), "output": str(output), "base": base, "cache": cache_of(target)}
    return MergeJob(**places, **{n: options[n] for n in names})


def _check_free(output: Path) -> None:
    shown = shown_path(output)
    if (output / "config.json").exists():
        chat = f"qlora-run chat {quoted(shown)}"
        raise UserError(f"{shown}: holds a model already", f"{chat}   or   -o ANOTHER-FOLDER")
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"{shown}: holds other files already", "-o ANOTHER-FOLDER")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{shown}: cannot be written ({error.strerror or error})", "-o ANOTHER-FOLDER") from error
    if output.exists() and not output.is_dir():
        raise UserError(f"{shown}: a file is in the way", "-o ANOTHER-FOLDER")
