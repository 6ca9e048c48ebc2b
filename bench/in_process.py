"""Runs of the product's own step and trainer inside one process, so that a model is loaded once for many of them."""

import gc
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qlora_core import backends
from qlora_core.memory import device_memory
from qlora_core.model import lora_init
from qlora_core.session.control import Control
from qlora_core.session.event_log import EventLog
from qlora_core.train.dataset import PreparedData, prepare_data
from qlora_core.train.job import Job
from qlora_core.train.trainer import StepTrainer
from qlora_profiles.plan import Given, Request, RunPlan, strongest
from qlora_run.planner.cost.cuda_overhead import GRAPHS_BYTES
from qlora_run.planner.make_plan import PlanInput, make_plan


def plan_of(values: dict[str, Any]) -> RunPlan:
    """The planner's plan on this machine with these values; ``None`` leaves a setting to it."""
    given = {name: Given(value=value, source="cli") for name, value in values.items()}
    return make_plan(PlanInput(request=Request(given=strongest(given))))


@dataclass
class Loaded:
    """A model on the device, and the backend that put it there.

    ``usual_outside_bytes`` is what a process takes beside torch's allocator without CUDA graphs, once that is known:
    the driver keeps what it gave to the graphs of earlier trainers, which a run in a process of its own never had.
    """

    backend: Any
    model: Any
    free_before_bytes: int | None
    usual_outside_bytes: int | None = None

    @classmethod
    def of(cls, plan: RunPlan) -> "Loaded":
        """Load what a plan names, without its memory cap."""
        if plan.execution_values().expandable_segments:  # as the core says it before torch is there
            torch.cuda.memory._set_allocator_settings("expandable_segments:True")
        before = device_memory._free_before_bytes(plan)
        backend = backends.create("peft")
        return cls(backend=backend, model=backend.load(plan, print), free_before_bytes=before)

    def trainer(self, plan: RunPlan, output: Path) -> tuple[StepTrainer, PreparedData]:
        """A trainer for a plan of this model, its adapter at its first values, capped as the plan says."""
        output.mkdir(parents=True, exist_ok=True)
        log = EventLog(output)
        data = prepare_data(plan, output, log)
        memory = device_memory.prepare(plan)
        memory.free_before_bytes = self.free_before_bytes
        if self.free_before_bytes and self.usual_outside_bytes:
            own = self.usual_outside_bytes + (GRAPHS_BYTES if plan.execution_values().cuda_graphs else 0)
            free, _ = torch.cuda.mem_get_info()
            outside = self.free_before_bytes - free - torch.cuda.memory_reserved()
            memory.free_before_bytes -= max(0, outside - own)
        memory.cap_again(memory.outside_now_bytes())
        lora_init.initialise(self.model.model, plan.recipe_values().seed)
        self.model.model.zero_grad(set_to_none=True)
        self.backend._plan, self.backend._loss = plan, None
        job = Job(
            plan=plan,
            backend=self.backend,
            loaded=self.model,
            train=data.train,
            held_out=data.held_out,
            log=log,
            stop=Control(),
            memory=memory,
            output=output,
        )
        return StepTrainer(job), data

    def settle(self, plan: RunPlan, output: Path) -> None:
        """Train a little without CUDA graphs, and note what is outside of the allocator by then."""
        trainer, _ = self.trainer(plan, output)
        trainer.train()
        trainer.optimizer = None
        self.usual_outside_bytes = trainer.job.memory.outside_now_bytes()

    def clear(self) -> None:
        """Lift the cap and give back what the last trainer left."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(1.0)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def rows_of(path: Path) -> list[Any]:
    """The rows of a JSON array or a JSONL file."""
    text = path.read_text(encoding="utf-8")
    return list(json.loads(text)) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]


def slice_of(rows: list[Any], rng: random.Random, folder: Path) -> Path:
    """A random slice of the rows, now and then with its texts joined to longer ones, in a file of its own."""
    count = rng.choice((40, 120, 300))
    start = rng.randrange(max(1, len(rows) - count))
    chosen = rows[start : start + count]
    joined = rng.choice((1, 1, 3, 10))
    if joined > 1 and "output" in chosen[0]:
        groups = [chosen[i : i + joined] for i in range(0, len(chosen), joined)]
        chosen = [group[0] | {"output": "\n".join(str(row["output"]) for row in group)} for group in groups]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen), encoding="utf-8")
    return path
