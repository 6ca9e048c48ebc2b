"""What a person means by the folder of ``chat``, ``infer`` and ``merge``: checked before anything is loaded."""

import sys
from pathlib import Path
from typing import Any

from qlora_core.export.artifacts import BaseRecord
from qlora_profiles import codec
from qlora_profiles.base_files import base_digests
from qlora_profiles.errors import UserError
from qlora_profiles.plan import other_parts
from qlora_profiles.run_folder import ADAPTER, ADAPTER_CONFIG, BASE_RECORD, MERGED_MODEL
from qlora_profiles.visible import visible
from qlora_run.planner.make_plan import check_own_code
from qlora_run.report.commands import on_run
from qlora_run.report.formatting import quoted, shown_path
from qlora_run.runs.folder import latest_run, look, newest_run, no_such_folder

WHAT = "a run's folder, an adapter's or a model's"


def target_of(options: dict[str, Any]) -> Path:
    """The folder named, or the run under ``runs`` that finished last. Raises UserError where there is none."""
    named = options.get("adapter")
    if not named:
        latest = latest_run()
        if latest is None:
            raise UserError("no finished run here (looked under runs)", "qlora-run chat FOLDER")
        return latest
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise no_such_folder(folder)
    return folder


def cache_of(target: Path) -> str | None:
    """Where the run that ``target`` belongs to keeps downloaded models, if not in the hub's usual folder."""
    plans = (look(folder).plan for folder in (target, target.absolute().parent))
    return next((plan.run_values().cache for plan in plans if plan), None)


def chat_base(target: Path, options: dict[str, Any]) -> str | None:
    """The base to chat with: an adapter's, ``None`` where ``target`` holds a whole model.

    Raises:
        UserError: nothing to chat with, a base that does not fit, or code of the model's own that was not allowed.
    """
    if options.get("merged") and _adapter_in(target) and not _is_model(target / MERGED_MODEL):
        raise UserError(f"{shown_path(target)}: has no merged model", on_run("merge", target))
    adapter = None if options.get("merged") else _adapter_in(target)
    if adapter is not None:
        base = checked_base(adapter, options)
        if not options.get("base") and (said := changed_base(adapter, base)):
            print(visible(f"warning: {said}"), file=sys.stderr)
        return base
    model = next((folder for folder in (target / MERGED_MODEL, target) if _is_model(folder)), None)
    if model is None:
        raise nothing_in(target)
    check_own_code(model, shown_path(model), bool(options.get("trust_remote_code")))
    return None


def adapter_in(target: Path, options: dict[str, Any]) -> tuple[Path, str]:
    """The adapter folder in ``target``, and a base that fits it.

    Raises:
        UserError: no adapter there, or as ``checked_base``.
    """
    adapter = _adapter_in(target)
    if adapter is not None:
        base = checked_base(adapter, options)
        said = None if options.get("base") else changed_base(adapter, base)
        if said:
            fix = f"put it back   or   --base {quoted(shown_path(base))} to merge into what lies there now"
            raise UserError(said, fix)
        return adapter, base
    if _is_model(target / MERGED_MODEL) or _is_model(target):
        raise UserError(f"{shown_path(target)}: a whole model, no adapter to merge", on_run("chat", target))
    raise nothing_in(target)


def nothing_in(target: Path) -> UserError:
    """The error for a folder without anything trained: a run that did not end, or no run at all."""
    shown, found = shown_path(target), look(target)
    if found.state == "unfinished":
        return UserError(f"{shown}: not finished, stopped at step {found.last_step}", on_run("resume", target))
    inside = newest_run(target)
    fix = on_run("chat", inside) if inside else WHAT
    return UserError(f"{shown}: nothing trained lies here (no {ADAPTER}, no {MERGED_MODEL})", fix)


def _adapter_in(target: Path) -> Path | None:
    return next((f for f in (target / ADAPTER, target) if (f / ADAPTER_CONFIG).is_file()), None)


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def checked_base(adapter: Path, options: dict[str, Any]) -> str:
    """The folder or hub id of an adapter's base, which is there and of its shape.

    Raises:
        UserError: no record of a base, no such folder or model, another architecture or size, or code of its own.
    """
    if not (adapter / BASE_RECORD).is_file():
        raise UserError(f"{shown_path(adapter)}: an adapter of another program (no {BASE_RECORD})", "one trained here")
    record = codec.load(adapter / BASE_RECORD, BaseRecord)
    base = str(options.get("base") or _recorded_base(adapter, record))
    try:
        found = _shape_of(base, record, cache_of(adapter))
    except UserError as error:
        message, fix = (text.replace("--model ", "--base ") for text in (error.message, error.fix or ""))
        raise UserError(message, fix or None) from error
    wanted = (record.model_type, record.num_layers, record.hidden_size)
    if found != wanted:
        trained = f"{shown_path(record.model)} ({_shape_text(wanted)})"
        fix = f"--base {quoted(shown_path(record.model))}"
        raise UserError(f"--base {base}  {_shape_text(found)}; the adapter was trained on {trained}", fix)
    if Path(base).is_dir():
        check_own_code(Path(base), base, bool(options.get("trust_remote_code")))
    return base


def changed_base(adapter: Path, base: str) -> str | None:
    """That ``base`` is no longer what the adapter was trained on, though its shape is; ``None`` where it is, or is
    not on this disk. Its tokenizer and template do not count: the adapter has its own."""
    record = codec.load(adapter / BASE_RECORD, BaseRecord)
    folder = _folder_of(base, record, cache_of(adapter))
    try:
        now = base_digests(folder) if folder else {}
    except OSError:
        return None  # loading it says what is wrong
    parts = [part for part in other_parts(record.base_parts, now) if part in ("weights", "config")]
    if not parts:
        return None
    what = f"other {' and '.join(parts)} than {shown_path(adapter)} was trained on"
    return f"{shown_path(base)}: {what}; answers will differ"


def _folder_of(base: str, record: BaseRecord, cache: str | None) -> Path | None:
    """Where a base lies on this disk, a hub model in the adapter's revision; ``None`` where it does not."""
    folder = Path(base).expanduser()
    if folder.is_dir():
        return folder
    from qlora_run.model_facts.hub import cached_folder

    return cached_folder(base, Path(cache) if cache else None, record.revision if base == record.model else None)


def _recorded_base(adapter: Path, record: BaseRecord) -> str:
    """The base that an adapter names; of a hub model, the folder where its run stored it."""
    plan = look(adapter.parent).plan
    if plan is None or Path(record.model).is_dir():
        return record.model
    run = plan.run_values()
    if run.local_dir and _is_model(Path(run.local_dir)):
        return run.local_dir
    from qlora_run.model_facts.hub import cached_folder

    stored = cached_folder(record.model, Path(run.cache), record.revision) if run.cache else None
    return str(stored or record.model)


def _shape_of(base: str, record: BaseRecord, cache: str | None) -> tuple[str, int, int]:
    """(architecture, layers, width); of a folder only its config is read."""
    from qlora_run.model_facts import read_model_facts
    from qlora_run.model_facts.config import dimensions
    from qlora_run.model_facts.folder import read_config

    folder = Path(base).expanduser()
    if folder.is_dir():
        sizes = dimensions(read_config(folder, base), base)
        return sizes.model_type, sizes.num_layers, sizes.hidden_size
    revision = record.revision if base == record.model else None
    facts = read_model_facts(base, Path(cache) if cache else None, revision=revision)
    return facts.model_type, facts.num_layers, facts.hidden_size


def _shape_text(shape: tuple[str, int, int]) -> str:
    return f"{shape[0]}, {shape[1]} layers of {shape[2]}"
