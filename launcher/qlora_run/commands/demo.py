"""``demo``: the whole main job on an embedded tiny base, on the same road as ``--auto``."""

import json
import time
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import msgspec
import yaml

from qlora_core.session import child_process
from qlora_profiles import run_folder
from qlora_profiles.errors import EnvironmentProblem
from qlora_profiles.jobs import ChatJob, ExactMatchJob
from qlora_profiles.plan import Given, Request, strongest
from qlora_profiles.registry import lookup, parse
from qlora_run.cli.commands import Command
from qlora_run.commands.plan_input import plan_input
from qlora_run.supervise.child import child_environment

SAMPLES = 2
"""Held-out prompts that are shown with their answers."""


def run(command: Command) -> int:
    """Train the demo, count exact answers before and after, and show a few.

    Raises:
        QloraRunError: as ``train``.
        EnvironmentProblem: the answers could not be counted.
    """
    from qlora_run.commands.train import start
    from qlora_run.planner.make_plan import PlanInput, make_plan
    from qlora_run.runs.folder import with_output

    began = time.monotonic()
    with as_file(files("qlora_core").joinpath("demo")) as folder:
        request = demo_request(folder, plan_input(command).request)
        plan = with_output(make_plan(PlanInput(request=request)))
        output = Path(plan.run_values().output)
        code = start(plan, as_json=command.options["json"], dry_run=command.options["dry_run"])
        if code or command.options["dry_run"]:
            return code
        shares = exact_shares(folder, output)
    return _close(output, shares, time.monotonic() - began)


def demo_request(folder: Path, changes: Request) -> Request:
    """What the demo gives: its embedded base and rows, its recipe, 4 bits, a merged model."""
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    held_out = _held_out(folder)
    values: dict[str, Any] = {
        "model": str(folder / "base"),
        "data": str(folder / "data" / "train.jsonl"),
        "method": "qlora-4",
        "merge": True,
        "sample_prompts": [row["messages"][0]["content"] for row in held_out[:SAMPLES]],
        **recipe,
    }
    given = {
        name: Given(value=parse(lookup(name), value), source="profile", reason="the demo")
        for name, value in values.items()
    }
    return msgspec.structs.replace(changes, given=strongest(given, changes.given))


def _held_out(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "data" / "held_out.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def exact_shares(folder: Path, output: Path) -> dict[str, float]:
    """Shares (0 to 1) of exact answers to unseen prompts: the base before, the adapter after, the merged model.

    Raises:
        EnvironmentProblem: the counting itself failed.
    """
    print("Counting exact answers to unseen prompts, before and after ...", flush=True)
    models = {
        "before": ChatJob(target=str(folder / "base"), load_in_4bit=True),
        "after": ChatJob(target=str(output), base=str(folder / "base"), load_in_4bit=True),
        "merged": ChatJob(target=str(output), merged=True),
    }
    job = ExactMatchJob(data=str(folder / "data" / "held_out.jsonl"), models=models)
    command = child_process.job_command("qlora_core.jobs.exact_match", job)
    child = child_process.start(command, "the counting", output="pipes", environment=child_environment())
    lines, errors = child.said()
    if child.exit_code != 0:
        last = errors[-1] if errors else "no message"
        raise EnvironmentProblem(f"the demo's answers could not be counted: {last}", "qlora-run doctor")
    shares: dict[str, float] = json.loads(lines[-1])
    return shares


def _close(output: Path, shares: dict[str, float], seconds: float) -> int:
    result = {f"{name}_exact_match": share for name, share in shares.items()} | {"seconds": round(seconds, 1)}
    (output / run_folder.DEMO_RESULT).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(
        f"exact answers to unseen prompts: before {shares['before']:.0%}, after {shares['after']:.0%}, "
        f"merged {shares['merged']:.0%}, in {seconds:.0f} s  ({output / run_folder.DEMO_RESULT})"
    )
    print("Now with your own rows: qlora-run --auto --model FOLDER --data my.jsonl")
    return 0
