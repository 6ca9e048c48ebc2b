"""The output folder: finding one, and refusing to mix runs or to lose anything in it."""

import glob
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal

import msgspec

from qlora_profiles import codec, events
from qlora_profiles.data_source import parse_source
from qlora_profiles.errors import UserError
from qlora_profiles.file_lock import Taken, claimed
from qlora_profiles.machine_errors import FULL, disk_full
from qlora_profiles.plan import PERSON, Resolved, RunPlan, recipe_differences
from qlora_profiles.run_folder import ADAPTER_CONFIG, CORE_RUNNING, EVENTS, PLAN, PLAN_COPY, RUNNING, left, results
from qlora_profiles.suggest import dangling, hint
from qlora_run.report.commands import on_run
from qlora_run.report.formatting import quoted, shown_path
from qlora_run.report.plan_changes import mixing_error
from qlora_run.runs.links import refuse_links
from qlora_run.runs.lost_events import lost_events
from qlora_run.runs.own_files import check_own

RUNS = Path("runs")
FOREIGN = (ADAPTER_CONFIG, "config.json", "*.safetensors", "pytorch_model*.bin")
"""What another program leaves in a folder, beside names that are ours, too."""
CORE_PATIENCE_SECONDS = 30.0
"""Set by hand: a step and its checkpoint, of a core whose launcher was killed."""

State = Literal["new", "unfinished", "finished", "foreign", "damaged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What an output folder holds; ``problem`` says why a damaged one cannot be read, ``note`` what is missing."""

    state: State
    plan: RunPlan | None = None
    last_step: int = 0
    problem: str = ""
    note: str = ""


def look(folder: Path) -> Found:
    """What is in ``folder``; never raises for what it finds."""
    try:
        return _look(folder)
    except UserError as error:
        return Found(state="damaged", problem=error.message)
    except OSError as error:
        return Found(state="damaged", problem=f"{folder}: cannot be read ({error.strerror or error})")


def _look(folder: Path) -> Found:
    if not has_plan(folder):
        return Found(state="foreign" if folder.is_dir() and _is_taken(folder) else "new")
    plan, note = plan_in(folder)
    past = events.all_events(folder / EVENTS)
    ends = [e.status for e in past if isinstance(e, events.DoneEvent)]
    last = max((e.step for e in past if isinstance(e, events.StepEvent)), default=0)
    note = "; ".join(filter(None, (note, lost_events(folder, last))))
    return Found(state="finished" if "finished" in ends else "unfinished", plan=plan, last_step=last, note=note)


def _is_taken(folder: Path) -> bool:
    foreign = (path for pattern in FOREIGN for path in folder.glob(pattern))
    return any(path.exists() for path in (*foreign, *left(folder)))


def has_plan(folder: Path) -> bool:
    """Whether a run's plan lies in ``folder``, or its copy."""
    return any((folder / name).is_file() for name in (PLAN, PLAN_COPY))


def plan_in(folder: Path) -> tuple[RunPlan, str]:
    """The plan of the run in ``folder``, and a line that says so where only its copy can be read, else nothing.

    Raises:
        UserError: neither can be; says what is wrong with ``plan.json``.
    """
    path, copy = folder / PLAN, folder / PLAN_COPY
    try:
        return read_plan(path), ""
    except UserError as error:
        if not copy.is_file():
            raise
        try:
            return read_plan(copy), f"{_short(error, path)}: the plan is taken from its copy, {PLAN_COPY}"
        except UserError:
            raise error from None


def _short(error: UserError, path: Path) -> str:
    return error.message.replace(str(path), shown_path(path)) if path.exists() else f"{shown_path(path)} is gone"


def runs_under(root: Path, name: str = "*") -> list[Path]:
    """The folders under ``root`` that match ``name`` and hold a run's plan, or its copy."""
    return [folder for folder in root.glob(name) if folder.is_dir() and has_plan(folder)]


def way_without_plan(folder: Path) -> str | None:
    """What goes on with the run in ``folder`` without its plan: the same command, from the newest whole checkpoint."""
    from qlora_core.train.checkpoints import newest

    whole = newest(folder)
    if whole is None:
        return None
    return f"--resume {quoted(shown_path(whole))} --output {quoted(shown_path(free_sibling(folder)))}"


def read_plan(path: Path) -> RunPlan:
    """The plan in a file. Raises UserError for one that is damaged, or no plan at all."""
    plan = codec.load(path, RunPlan)
    try:
        plan.recipe_values(), plan.run_values()
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: {error}") from error
    return plan


def default_output(model_name: str, root: Path = RUNS) -> Path:
    """``runs/MODEL-N`` with the first free number."""
    folders = (root / f"{model_name.lower()}-{number}" for number in count(1))
    return next(folder for folder in folders if not folder.exists())


def free_sibling(folder: Path) -> Path:
    """A free folder beside ``folder``: ``NAME-2`` for ``NAME`` or ``NAME-1``."""
    match = re.fullmatch(r"(.+)-(\d{1,4})", folder.name)
    name, number = (match[1], int(match[2])) if match else (folder.name or "run", 1)
    beside = (folder.parent / f"{name}-{other}" for other in count(number + 1))
    return next(other for other in beside if not other.exists())


def with_output(plan: RunPlan) -> RunPlan:
    """The plan with its folder: the one asked for, an unfinished run of this recipe under runs, or a new one there."""
    if plan.run["output"].source in PERSON:
        return plan
    stopped = None if plan.run["resume"].value == "never" else stopped_run(plan)
    folder = stopped or default_output(run_name(plan))
    reason = "goes on with the run that was stopped there" if stopped else "the next free folder under runs"
    if stopped is None and plan.run["resume"].value == "auto" and (lost := checkpoint_without_plan(plan)):
        way = f"--resume {quoted(shown_path(lost))} goes on from there"
        plan = msgspec.structs.replace(
            plan, notes=(*plan.notes, f"a run of this was stopped, its {PLAN} is lost: {way}")
        )
    return _replaced(plan, "run", {"output": Resolved(value=str(folder), source="default", reason=reason)})


def run_name(plan: RunPlan) -> str:
    """What a run is called: its model's name, also where the model is given as ``.``"""
    name = plan.model.name
    return name if name.strip(".") else Path(plan.model.source).resolve().name


def stopped_run(plan: RunPlan, root: Path = RUNS) -> Path | None:
    """The newest unfinished run under ``root`` that learns what ``plan`` asks for, or ``None``."""
    folders = runs_under(root, f"{glob.escape(run_name(plan).lower())}-*")
    found = {folder: look(folder) for folder in folders}
    same = [f for f, held in found.items() if held.state == "unfinished" and decisions_agree(held.plan, plan)]
    return max(same, key=_changed_at, default=None)


def checkpoint_without_plan(plan: RunPlan, root: Path = RUNS) -> Path | None:
    """A whole checkpoint of what ``plan`` learns under ``root``, in a folder whose own plan cannot be read."""
    from qlora_core.train.checkpoints import newest, recipes_in

    folders = root.glob(f"{glob.escape(run_name(plan).lower())}-*")
    lost = (folder for folder in folders if folder.is_dir() and not _is_planned(folder))
    whole = (newest(folder) for folder in lost if plan.recipe_digest() in recipes_in(folder))
    return next(filter(None, whole), None)


def _is_planned(folder: Path) -> bool:
    try:
        plan_in(folder)
    except (UserError, OSError):
        return False
    return True


def decisions_agree(old: RunPlan | None, new: RunPlan) -> bool:
    """Whether the two recipes differ at most in values that nobody decided, such as a method chosen by free memory."""
    return old is not None and all(_undecided(old, new, name) for name, *_ in recipe_differences(old, new))


def _undecided(old: RunPlan, new: RunPlan, name: str) -> bool:
    sources = old.recipe[name].source, new.recipe[name].source
    return name != "data" and not any(source in PERSON for source in sources)


def latest_run(root: Path = RUNS) -> Path | None:
    """The run under ``root`` that finished last, or ``None``."""
    finished = [folder for folder in runs_under(root) if look(folder).state == "finished"]
    return max(finished, key=_changed_at, default=None)


def newest_run(root: Path = RUNS) -> Path | None:
    """The run under ``root`` that was worked on last, or ``None``."""
    return max(runs_under(root), key=_changed_at, default=None)


def _changed_at(folder: Path) -> float:
    log = folder / EVENTS
    return (log if log.exists() else folder).stat().st_mtime


def no_such_folder(folder: Path) -> UserError:
    """The error for a run's folder, or its plan, that is not there; with the nearest that is."""
    beside = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
    near = dangling(folder) or hint(folder.name, beside)
    newest = newest_run()
    fix = f"the folder of a run, such as {shown_path(newest) if newest else 'runs/NAME-1'}"
    what = "file" if folder.suffix == ".json" else "folder"
    return UserError(f"{folder}: no such {what}{near}", fix)


def claim(folder: Path, plan: RunPlan) -> Found:
    """Make ``folder`` ready for ``plan``; a run of the same recipe that is not finished is gone on with.

    Raises:
        UserError: it holds another run, a finished one, somebody else's files, or what this run is made of.
    """
    found = look(folder)
    overwrite = plan.run_values().overwrite
    if not overwrite:
        _refuse(folder, found, plan)
    elif found.plan is not None or found.state == "damaged":
        _clear(folder, plan)
        return Found(state="new")
    if found.plan is not None and recipe_differences(found.plan, plan):  # it failed before its first step
        _clear(folder, plan)
        return Found(state="new")
    return found


def check_free(folder: Path, plan: RunPlan) -> None:
    """Raise UserError where :func:`occupied` or :func:`claim` would; changes nothing."""
    _refuse_file(folder)
    if not plan.run_values().overwrite:
        _refuse(folder, look(folder), plan)


def _refuse_file(folder: Path) -> None:
    """Raise UserError where something that is no folder stands in the place of ``folder``, or of one above it."""
    place = next((each for each in (folder, *folder.parents) if each.exists() or each.is_symlink()), folder)
    if not place.is_dir() and (place.exists() or place.is_symlink()):
        what = "a file" if place.exists() else "a link that leads nowhere"
        raise UserError(f"--output {shown_path(folder)}: {shown_path(place)} is {what}", "--output ANOTHER-FOLDER")


def _refuse(folder: Path, found: Found, plan: RunPlan) -> None:
    shown = shown_path(folder)
    if found.state == "damaged":
        way = way_without_plan(folder) or "--output ANOTHER-FOLDER"
        raise UserError(found.problem, f"{way}   or   --overwrite to lose what is in {shown}")
    if found.state == "foreign":
        raise _no_plan(folder)
    if found.plan is None:
        return
    if recipe_differences(found.plan, plan):
        if found.last_step or found.state == "finished" or any(results(folder)):
            raise _other_recipe(folder, found, plan)
    elif found.state == "finished":
        fix = f"{on_run('merge', folder)}   or   --overwrite to train again"
        raise UserError(f"{shown} holds this very run, finished at step {found.last_step}; not merged yet", fix)
    elif plan.run_values().resume == "never" and found.last_step:
        fix = f"{on_run('resume', folder)}   or   --overwrite"
        raise UserError(f"{shown} holds this run, stopped at step {found.last_step}", fix)


def _no_plan(folder: Path) -> UserError:
    way, shown = way_without_plan(folder), shown_path(folder)
    if way is None:
        return UserError(f"{shown}: holds files of something else; refusing to mix", "--output ANOTHER-FOLDER")
    return UserError(f"{shown}: holds checkpoints of a run whose {PLAN} is gone; refusing to mix", way)


def _other_recipe(folder: Path, found: Found, plan: RunPlan) -> UserError:
    assert found.plan is not None
    finished = found.state == "finished"
    return mixing_error(found.plan, plan, folder, found.last_step, free_sibling(folder), finished)


def _clear(folder: Path, plan: RunPlan) -> None:
    """Delete what a run of ours wrote, and nothing else.

    Raises:
        UserError: ``plan`` itself is made of it, or something of it is not ours; nothing is deleted then.
    """
    entries = left(folder)
    for entry in entries:
        check_own(entry)
    for name, value in _made_of(plan):
        source = Path(value).expanduser().resolve()
        if any(source == entry.resolve() or entry.resolve() in source.parents for entry in entries):
            said = f"--overwrite would delete the {name} of this run, {shown_path(value)}"
            raise UserError(said, "--output ANOTHER-FOLDER")
    for entry in sorted(entries, key=lambda entry: entry.name == PLAN):  # last: by it the rest is known to be ours
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def _made_of(plan: RunPlan) -> Iterator[tuple[str, str]]:
    """What a run is made of, as (setting, path or hub id)."""
    yield "model", plan.recipe["model"].value
    yield from (("data", parse_source(text).place) for text in plan.recipe["data"].value)


@contextmanager
def occupied(folder: Path, say: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Make ``folder`` and hold it, so that no second run writes there meanwhile.

    ``say`` hears what a person should know: what is waited for, and that a file system cannot keep others out.

    Raises:
        UserError: it cannot be written, another run holds it, or links in it lead out of it.
        EnvironmentProblem: the disk is full.
    """
    with ExitStack() as stack:
        try:
            _refuse_file(folder)
            folder.mkdir(parents=True, exist_ok=True)
            refuse_links(folder)
            locked = stack.enter_context(claimed(folder / RUNNING))
            _wait_for_core(folder, say)
        except Taken as taken:
            raise _held_by(folder, taken.pid) from taken
        except OSError as error:
            if error.errno in FULL:
                raise disk_full(folder) from error
            said = f"{folder}: cannot be written ({error.strerror or error})"
            raise UserError(said, "--output ANOTHER-FOLDER") from error
        if not locked:
            say(f"{shown_path(folder)} lies where files cannot be locked: start no second run there meanwhile")
        yield


def _wait_for_core(folder: Path, say: Callable[[str], None]) -> None:
    """A core whose launcher was killed saves after its step and ends. Raises Taken where that takes too long."""
    try:
        with claimed(folder / CORE_RUNNING):
            return
    except Taken as taken:
        process = f"process {taken.pid}" if taken.pid else "a process"
        say(f"{shown_path(folder)}: {process} of an earlier start still saves there; waiting for it ...")
    with claimed(folder / CORE_RUNNING, CORE_PATIENCE_SECONDS):
        pass


def _held_by(folder: Path, pid: int | None) -> UserError:
    process = f"process {pid}" if pid else "on another machine, or just starting"
    said = f"{shown_path(folder)}: another run is writing there ({process})"
    return UserError(said, "wait for it, or --output ANOTHER-FOLDER")


def with_full_paths(plan: RunPlan) -> RunPlan:
    """The plan as it is stored: what lies on this disk is named in full, so that it is found from any folder."""
    recipe = {"model": _if_there(plan.recipe["model"]), "data": each_path(plan.recipe["data"], _source_in_full)}
    run = {name: _full(plan.run[name]) for name in ("output", "local_dir", "cache") if plan.run[name].value}
    return _replaced(_replaced(plan, "recipe", recipe), "run", run | {"resume": _if_there(plan.run["resume"])})


def _if_there(given: Resolved) -> Resolved:
    """``model`` may be a hub id, ``resume`` a word."""
    return each_path(given, lambda path: _absolute(path) if Path(path).expanduser().exists() else path)


def _source_in_full(text: str) -> str:
    return parse_source(text).in_full().text


def _full(given: Resolved) -> Resolved:
    return each_path(given, _absolute)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def each_path(given: Resolved, changed: Callable[[str], str]) -> Resolved:
    """A setting that holds a path, or several, with each of them changed."""
    value = given.value
    return msgspec.structs.replace(
        given, value=changed(value) if isinstance(value, str) else tuple(map(changed, value))
    )


def _replaced(plan: RunPlan, scope: Literal["recipe", "run"], values: dict[str, Resolved]) -> RunPlan:
    return msgspec.structs.replace(plan, **{scope: getattr(plan, scope) | values})
