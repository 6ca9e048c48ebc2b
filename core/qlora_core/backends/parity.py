"""Does a backend learn what the plain one does? Both take the same few steps, each in a process of its own.

A backend may change its libraries for the whole process, and one that turned out wrong cannot be undone: so neither
side is computed in the process of the run. Each child loads the base, puts on the seed's adapter, takes a few
optimizer steps on the first rows of the data and prints losses and gradient norms; the losses after the first step
depend on the gradients. What came out is kept for these versions, this card and this model: it costs two loads of
the model once. Forward and backward, recomputed layers and kept ones, and boundaries between examples are all in it.

``python -m qlora_core.backends.parity JOB.json`` is one side; the last line of its output is the answer.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from qlora_core.data import TokenizedExample
from qlora_core.session import child_process
from qlora_core.session.environment import set_environment, versions
from qlora_profiles import codec, run_folder
from qlora_profiles.errors import QloraRunError
from qlora_profiles.machine_key import digest, machine_key
from qlora_profiles.machine_store import MachineStore
from qlora_profiles.plan import Resolved, RunPlan

if TYPE_CHECKING:
    from qlora_core.session.control import Control
    from qlora_core.session.event_log import EventLog

PLAIN = "peft"
COMPARED = ("unsloth",)
"""Backends that are not believed before they agreed with the plain one."""

KIND = "backend_comparisons"
"""In the store of the machine."""
PHASE = "comparing unsloth with peft"
STEPS, EXAMPLES, EXAMPLE_TOKENS = 3, 8, 128
LEARNING_RATE = 1e-3
"""Large enough that a wrong gradient shows in the losses that follow."""
FLOAT16_SCALE = 1024.0
LOSS_TOLERANCE, NORM_TOLERANCE = 1e-2, 5e-2
"""Relative; what bfloat16 kernels of different make differ by stays well below."""
MOST_SECONDS = 1200.0
"""Of one side; set by hand."""
ANSWER = "ANSWER "


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Each step's loss (nats per token) and gradient norm."""

    losses: tuple[float, ...]
    norms: tuple[float, ...]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A comparison as it is kept: relative differences, largest over the steps."""

    loss_apart: float
    norm_apart: float

    @property
    def agrees(self) -> bool:
        """Whether both are within what arithmetic in 16 bits explains."""
        return self.loss_apart <= LOSS_TOLERANCE and self.norm_apart <= NORM_TOLERANCE

    def __str__(self) -> str:
        return f"losses differ by {self.loss_apart:.1e}, gradients by {self.norm_apart:.1e}"


def agreed(plan: RunPlan, rows: Sequence[TokenizedExample], log: "EventLog", control: "Control") -> RunPlan:
    """The plan itself, or the same on the plain backend where its own does not agree with that; says so.

    Raises:
        Interrupted: the run is to stop.
    """
    name = plan.execution_values().backend
    if name not in COMPARED:
        return plan
    log.phase(PHASE)
    try:
        outcome = compared(plan, rows, control)
        reason = None if outcome.agrees else str(outcome)
    except ComparisonFailed as failure:
        reason = str(failure)
    if reason is None:
        return plan
    log.warn(f"{name} does not agree with {PLAIN}, which computes this run instead: {reason}")
    return on_backend(plan, PLAIN, f"{name}: {reason}")


def on_backend(plan: RunPlan, name: str, reason: str) -> RunPlan:
    """The same plan on another backend."""
    backend = Resolved(value=name, source="probe", reason=reason)
    return msgspec.structs.replace(plan, execution=plan.execution | {"backend": backend})


class ComparisonFailed(Exception):
    """One side could not be computed; the message says which and why."""


def compared(plan: RunPlan, rows: Sequence[TokenizedExample], control: "Control") -> Comparison:
    """How far the plan's backend is from the plain one: as kept from before, or measured now.

    Raises:
        ComparisonFailed: one of them did not run.
        Interrupted: the run is to stop.
    """
    store, name = MachineStore(KIND, Comparison), key(plan)
    before = store.read(name).value
    if before is not None:
        return before
    examples = [row.input_ids[:EXAMPLE_TOKENS] for row in islice(rows, EXAMPLES)]
    plain, other = (_in_child(plan, name, examples, control) for name in (PLAIN, plan.execution_values().backend))
    outcome = Comparison(loss_apart=apart(plain.losses, other.losses), norm_apart=apart(plain.norms, other.norms))
    store.write(name, outcome)
    return outcome


def apart(expected: Sequence[float], found: Sequence[float]) -> float:
    """Largest relative difference; infinite where a number is none."""
    differences = [abs(b - a) / max(abs(a), 1e-12) for a, b in zip(expected, found, strict=True)]
    return max((d if d == d else float("inf")) for d in differences)


def key(plan: RunPlan) -> str:
    """What a comparison holds for: versions, card, model and whatever picks a kernel."""
    recipe, execution = plan.recipe_values(), plan.execution_values()
    # Versions are asked here, where the backends are.
    cards = machine_key(plan.report).of_cuda_cards(packages=(), numbers=execution.devices)
    model = (plan.model.fingerprint, plan.model.model_type, recipe.method, recipe.lora_r, recipe.target_modules)
    kernels = (execution.backend, execution.compute_dtype, execution.attention, execution.loss_kernel)
    return digest(versions(), cards, model, kernels, STEPS, EXAMPLE_TOKENS)


def _in_child(plan: RunPlan, name: str, examples: Sequence[Sequence[int]], control: "Control") -> Steps:
    """One side, in a process that ends with it; it is killed when the run is to stop, or when it takes too long."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        job, said = Path(folder) / "job.json", Path(folder) / "said.txt"
        codec.save(on_backend(plan, name, "compared"), Path(folder) / run_folder.PLAN)
        job.write_text(
            json.dumps({"plan": str(job.with_name(run_folder.PLAN)), "examples": examples}), encoding="utf-8"
        )
        command = [sys.executable, "-m", "qlora_core.backends.parity", str(job)]
        with said.open("wb") as out:
            environment = child_process.python_environment()
            child = child_process.start(command, f"the comparison with {name}", output=out, environment=environment)
            child.ended_by_itself(lambda: control, MOST_SECONDS)
        control.stop_here()
        return _answer(name, child.exit_code, said.read_text(encoding="utf-8", errors="replace"))


def _answer(name: str, code: int, text: str) -> Steps:
    lines = text.strip().splitlines()
    answers = [line for line in lines if line.startswith(ANSWER)]
    if code or not answers:
        print(text, file=sys.stderr)  # into the run's log
        raise ComparisonFailed(
            f"{name} did not get through a few steps ({lines[-1][:200] if lines else f'exit {code}'})"
        )
    found = json.loads(answers[-1].removeprefix(ANSWER))
    return Steps(losses=tuple(found["losses"]), norms=tuple(found["norms"]))


def few_steps(plan: RunPlan, examples: Sequence[Sequence[int]]) -> Steps:
    """A few optimizer steps of the plan's backend on rows of which every token is supervised.

    Raises:
        UserError: the backend does not take the model or the recipe.
        EnvironmentProblem: it cannot run here.
    """
    from qlora_core import backends
    from qlora_core.memory import device_memory
    from qlora_core.model import lora_init

    backend = backends.begin(plan)
    device_memory.prepare(plan)
    loaded = backend.load(plan, print)
    lora_init.initialise(loaded.model, plan.recipe_values().seed)
    return take_steps(backend, loaded, plan, examples)


def take_steps(backend: Any, loaded: Any, plan: RunPlan, examples: Sequence[Sequence[int]]) -> Steps:
    """The steps themselves; half of the layers recompute, or as many as the plan says if that is more."""
    import torch

    from qlora_core.execution.limits import Limits
    from qlora_core.model.packing import pack

    execution = plan.execution_values()
    half = (backend.num_layers(loaded) + 1) // 2
    limits = msgspec.structs.replace(execution, layers_recomputed=max(execution.layers_recomputed, half))
    loss_function = backend.apply(loaded, Limits.of(limits))
    loaded.model.train()
    trained = [p for p in loaded.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    rows = [TokenizedExample(input_ids=list(ids), supervised=[True] * len(ids)) for ids in examples]
    packed = pack(rows, trained[0].device)
    scale = FLOAT16_SCALE if execution.compute_dtype == "float16" else 1.0
    losses, norms = [], []
    for _ in range(STEPS):
        loss = loss_function(packed) / len(packed.targets)
        (loss * scale).backward()
        for parameter in trained:
            if parameter.grad is not None:
                parameter.grad /= scale
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, 1.0)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    return Steps(losses=tuple(losses), norms=tuple(norms))


def main() -> int:
    """One side of a comparison; its answer on the last line of standard output."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    plan = codec.load(Path(job["plan"]), RunPlan)
    set_environment(plan)
    try:
        steps = few_steps(plan, job["examples"])
    except QloraRunError as error:
        print(error)
        return error.exit_code
    print(ANSWER + json.dumps({"losses": steps.losses, "norms": steps.norms}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
