"""From a request to a plan: probe, look at the model and the data, resolve."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from qlora_profiles.data_source import parse_source
from qlora_profiles.errors import UserError
from qlora_profiles.hardware import HardwareReport
from qlora_profiles.machines import load_machine
from qlora_profiles.plan import Given, Request, RunPlan
from qlora_profiles.registry import lookup
from qlora_profiles.settings import Recipe, Run
from qlora_run.fetch import bring_hub_sets, is_here
from qlora_run.machine.measurements.records import Calibration
from qlora_run.machine.measurements.store import load
from qlora_run.machine.selftest_results import SelftestResults, load_results
from qlora_run.model_facts import read_model_facts
from qlora_run.model_facts.folder import read_config
from qlora_run.planner import as_measured, default_model, devices_given, resolve, usual_length
from qlora_run.planner.backends import backend_reasons
from qlora_run.probe import probe

if TYPE_CHECKING:
    from qlora_profiles.facts import DataFacts, ModelFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanInput:
    """What a plan is made for.

    ``machine`` is a shipped machine or a saved report instead of this one; ``report`` one in hand.
    ``only_planning`` allows what a run could not do: a known model that is not on this disk, data that does not
    exist yet. ``selftest_results`` is what was tried just now; otherwise what the cache knows of the machine.
    """

    request: Request = field(default_factory=Request)
    report: HardwareReport | None = None
    machine: str | None = None
    only_planning: bool = False
    selftest_results: SelftestResults | None = None


def make_plan(inputs: PlanInput) -> RunPlan:
    """The plan of an input.

    Raises:
        UserError: no data, no such model, nothing fits, or a value that cannot be.
        EnvironmentProblem: the software of this machine lacks what a given value needs.
    """
    if not inputs.only_planning:
        check_data_named(inputs.request)
    report = machine_report(inputs)
    if not (inputs.only_planning and _data_is_prepared(inputs.request)):
        bring_hub_sets(_recipe(inputs.request, usual_length()))
    devices = devices_given(inputs.request.given)
    calibration, known = load(report, devices=devices), inputs.selftest_results or load_results(report)
    request = with_model(inputs.request, report, calibration, known)
    model = read_model_facts(
        request.value("model"),
        cache=_path(request.value("cache")),
        local_dir=_path(request.value("local_dir")),
        revision=request.value("revision"),
        allow_known=inputs.only_planning,
    )
    check_own_code(model_folder(request), request.value("model"), request.value("trust_remote_code", False))
    data = read_data_facts(request, model, inputs.only_planning)
    backends = backend_reasons(report)
    if "unsloth" in backends and (broken := known.problem("unsloth", "triton")):
        backends["unsloth"] = backends["unsloth"] or f"failed here: {broken}"
    plan = resolve(report, request, model, data, backends, calibration, known)
    return as_measured(plan, calibration, known)


def check_data_named(request: Request) -> None:
    """Raise UserError where the data is not there, or none was named and none lies where it is looked for."""
    from qlora_core.data.sources.data_file import check_there

    (usual,) = map(Path, lookup("data").default)
    for source in map(parse_source, request.value("data", ())):
        if source.hub or source.is_pattern:
            continue
        try:
            check_there(source.path)
        except UserError as error:
            if request.given["data"].source != "recipe":
                raise
            fix = error.fix or "--data FILE, or put it there"
            raise UserError(f"recipe {request.recipe_name}: {error.message}", fix) from error
    if "data" in request.given or usual.exists():
        return
    here = sorted(path.name for path in Path.cwd().glob("*.jsonl"))
    raise UserError(f"no --data was given, and there is no {usual} here", f"--data {here[0] if here else 'FILE'}")


def machine_report(inputs: PlanInput) -> HardwareReport:
    """The machine that is planned for.

    Raises:
        UserError: no shipped machine or report has that name.
    """
    if inputs.report is not None:
        return inputs.report
    if inputs.machine:
        return load_machine(inputs.machine)
    return probe(_path(inputs.request.value("output")), _path(inputs.request.value("cache")))


def with_model(
    request: Request, report: HardwareReport, calibration: Calibration, known: SelftestResults | None = None
) -> Request:
    """The request with a model: the one given, or one that suits the machine and the data."""
    if "model" in request.given:
        return request
    pick = default_model(report, rows_without_model(request), calibration, known, devices_given(request.given))
    return request.giving("model", Given(value=pick.name, source="probe", reason=pick.reason))


def rows_without_model(request: Request) -> "DataFacts | None":
    """The rows as far as they can be known before there is a tokenizer; ``None`` where there are none to read yet."""
    from qlora_core.data.pipeline import estimated_facts

    recipe = _recipe(request, usual_length())
    try:
        return estimated_facts(recipe) if all_there(recipe) else None
    except UserError:
        return None  # reading it again, with a model, says what is wrong


def _data_is_prepared(request: Request) -> bool:
    """Whether nobody named the data but a prepared recipe: a plan then does not fetch it."""
    given = request.given.get("data")
    return given is not None and given.source == "recipe"


def all_there(recipe: Recipe) -> bool:
    """Whether all of the recipe's data lies on this disk, copies of hub sets among it."""
    sources = map(parse_source, recipe.data)
    return all(is_here(each, recipe) if each.hub else each.is_pattern or each.path.exists() for each in sources)


def model_folder(request: Request) -> Path | None:
    """The folder on this disk that holds the model of a request: its own, ``local_dir``, or one of the hub's cache."""
    for folder in filter(None, (_path(request.value("model")), _path(request.value("local_dir")))):
        if (folder / "config.json").is_file():
            return folder
    from qlora_run.model_facts.hub import cached_folder

    return cached_folder(request.value("model"), _path(request.value("cache")), request.value("revision"))


def check_own_code(folder: Path | None, model: str, allowed: bool) -> None:
    """Refuse a model that only its own Python code can load, unless running that is allowed.

    Raises:
        UserError: it needs ``--trust-remote-code``.
    """
    if allowed or folder is None:
        return
    config = read_config(folder, model)
    if config.get("auto_map") and not _built_in(str(config.get("model_type"))):
        raise UserError(
            f"--model {model}  comes with Python code of its own that must run to load it",
            "--trust-remote-code, if you trust its authors",
        )


def _built_in(model_type: str) -> bool:
    """Whether the installed transformers knows the architecture itself, by its own list, read without importing it.

    Where there is no such list, loading the model will tell.
    """
    spec = find_spec("transformers")
    listed = Path(spec.origin or "").parent / "models" / "auto" / "auto_mappings.py" if spec else None
    return listed is None or not listed.is_file() or f'"{model_type}"' in listed.read_text(encoding="utf-8")


def read_data_facts(request: Request, model: "ModelFacts", only_planning: bool) -> "DataFacts":
    """Read and tokenise the data; for a plan alone, guess what is not on this disk: the rows, or the tokenizer.

    Raises:
        UserError: the data cannot be read, or no token of it is supervised.
    """
    from qlora_core.data.chat.tokenizer_source import tokenizer_on_disk
    from qlora_core.data.pipeline import assumed_facts, estimated_facts, read_facts

    recipe, run = data_recipe(request, model)
    named = request.given.get("data")
    if only_planning and (named is None or named.source == "recipe") and not all_there(recipe):
        assumed = assumed_facts(recipe.max_length)
        return awaited(assumed, recipe) if named else assumed
    if only_planning and not model.exact and tokenizer_on_disk(recipe, run) is None:
        return estimated_facts(recipe)
    return read_facts(recipe, run, embedding_rows=model.vocab_size)


def awaited(assumed: "DataFacts", recipe: Recipe) -> "DataFacts":
    """``assumed`` as facts of the data that a prepared recipe names and that is not on this disk yet."""
    name, rows = ", ".join(recipe.data), recipe.max_samples or assumed.rows
    note = f"{name} is not on this disk: planned for {rows:,} usual rows, the longest of {recipe.max_length:,} tokens"
    sources = tuple(msgspec.structs.replace(each, path=name, rows=rows) for each in assumed.sources)
    return msgspec.structs.replace(assumed, sources=sources, rows=rows, train_rows=rows, notes=(note,))


def data_recipe(request: Request, model: "ModelFacts | None" = None) -> tuple[Recipe, Run]:
    """A request as far as reading data needs one; rows are cut at the usual length unless it says else."""
    return _recipe(request, usual_length(model), model.max_positions if model else None), _run(request)


def _recipe(request: Request, length: int, most: int | None = None) -> Recipe:
    """A request as a recipe, as far as reading data needs one; rows are cut at ``length`` unless it says else."""
    names = Recipe.__struct_fields__
    values: dict[str, Any] = {"model": "", "method": "qlora-4", "max_length": length}
    values |= {name: given.value for name, given in request.given.items() if name in names}
    values["max_length"] = min(values["max_length"], most or values["max_length"])
    return Recipe(**values)


def _run(request: Request) -> Run:
    values = {name: given.value for name, given in request.given.items() if name in Run.__struct_fields__}
    return Run(**({"output": ""} | values))


def _path(text: str | None) -> Path | None:
    return Path(text).expanduser() if text else None
