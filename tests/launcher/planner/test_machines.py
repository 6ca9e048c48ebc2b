"""Plans for every shipped machine under every profile, as one text that a change has to own up to.

Refresh it with: QLORA_RUN_REFRESH=1 pytest tests/launcher/test_resolve_machines.py
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.planning_facts import asking, data_of, known

from qlora_profiles.catalogue import load_profile, profile_names
from qlora_profiles.errors import QloraRunError
from qlora_profiles.machines import load_machine, machine_names
from qlora_profiles.plan import Profile, RunPlan
from qlora_profiles.units import gib
from qlora_run.planner import default_model, resolve

SNAPSHOT = Path(__file__).parent / "snapshots" / "machines.txt"
DATA = data_of(longest=9000, mean=600)
PROFILES = (None, *profile_names())


def outcome(machine: str, profile_name: str | None) -> RunPlan | QloraRunError:
    report = load_machine(machine)
    profile: Profile | None = load_profile(profile_name) if profile_name else None
    model = profile.settings["model"] if profile else default_model(report, DATA).name
    try:
        return resolve(report, asking(profile=profile), known(model), DATA)
    except QloraRunError as error:
        return error


def line(result: RunPlan | QloraRunError) -> str:
    """A plan in one line, or why there is none."""
    if isinstance(result, QloraRunError):
        return f"no: {result}"
    recipe, execution, memory = result.recipe_values(), result.execution_values(), result.memory
    kernels = f"{execution.backend} {execution.device} {execution.compute_dtype} {execution.attention}"
    how = f"{execution.token_budget} tokens, {execution.layers_recomputed}/{result.model.num_layers} recomputed"
    how += ", graphs" if execution.cuda_graphs else ""
    took = f"{gib(memory.peak_bytes)}+-{gib(memory.error_bytes)} of {gib(memory.budget_bytes or 0)} GiB"
    what = f"{result.model.name} {recipe.method} {recipe.max_length}"
    return f"{what} | {kernels} | {how} | {took} | {result.time.seconds_high / 3600:.1f} h at most"


def all_lines() -> Iterator[str]:
    for name in PROFILES:
        yield f"== {name or 'no profile'}"
        yield from (f"{machine}: {line(outcome(machine, name))}" for machine in machine_names())


def test_the_plans_are_the_ones_on_file() -> None:
    text = "\n".join(all_lines()) + "\n"
    if os.environ.get("QLORA_RUN_REFRESH"):
        SNAPSHOT.write_text(text, encoding="utf-8", newline="\n")
    assert text.splitlines() == SNAPSHOT.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("machine", machine_names())
def test_every_plan_is_valid_or_refused_with_a_way_on(machine: str, profile: str | None) -> None:
    result = outcome(machine, profile)
    if isinstance(result, QloraRunError):
        assert result.fix
        assert "\n" not in str(result)
        assert profile is not None, "without a profile every shipped machine gets a plan"
        return
    result.recipe_values(), result.execution_values(), result.run_values()
    assert result.memory.fits or (profile is not None and result.memory.close)
    assert sum(part.bytes for part in result.memory.parts) == result.memory.peak_bytes
    assert result.execution_values().layers_recomputed <= result.model.num_layers
    report = load_machine(machine)
    if result.execution_values().device == "cuda":
        assert report.cuda_gpus
    if report.is_windows:
        execution = result.execution_values()
        assert (execution.workers, execution.dataset_workers, execution.expandable_segments) == (0, 0, False)


@pytest.mark.parametrize("name", [name for name in profile_names() if name != "cpu"])
def test_each_profile_fits_the_machines_it_is_made_for(name: str) -> None:
    """Exactly those shipped machines whose nearest profile it is."""
    from qlora_profiles.catalogue import nearest_profile

    for machine in machine_names():
        if nearest_profile(load_machine(machine)) == name:
            assert isinstance(outcome(machine, name), RunPlan), machine
