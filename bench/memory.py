"""How well is the peak of a step predicted? Device memory as the driver sees it against the closed form.

usage: python bench/memory.py MODEL_DIR [MODEL_DIR ...] [--methods qlora-4 ...] [--tokens 512 ...] [--backend peft]
                             [--json FILE]
       python bench/memory.py --score FILE [FILE ...] [--shapes shapes.json]

Each model and method runs in a process of its own: the model is loaded by the product's own backend, and for each
point (tokens of the micro-batch x share of the layers recomputed x loss kernel) two whole optimizer steps are
made. The prediction is the planner's, made from the model's headers before anything is loaded.

``--score`` predicts the points of earlier runs again, with the closed form as it is now. Each file says itself what
was measured; ``--shapes`` (configs by model name) tells the shapes of models in files that do not. With
``--fixed-segments`` the allocator's segments do not grow, as on Windows.
"""

import argparse
import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
from switches import SWITCHES

from qlora_profiles.codec import from_json, to_json
from qlora_profiles.errors import QloraRunError
from qlora_profiles.units import GIB

SHARES = {"all": 1.0, "half": 0.5, "none": 0.0}


def plan_for(model: str, method: str, values: dict[str, Any]) -> Any:
    """A plan on this machine with the method and the execution ``values`` given."""
    from qlora_core.data.pipeline import assumed_facts
    from qlora_profiles.plan import Given, Request
    from qlora_run.model_facts import read_model_facts
    from qlora_run.planner import resolve
    from qlora_run.planner.backends import backend_reasons
    from qlora_run.probe import probe

    values = {"model": model, "method": method, "max_length": 16384, **values}
    report = probe()
    given = {name: Given(value=value, source="cli") for name, value in values.items()}
    facts = read_model_facts(model)
    short = msgspec.structs.replace(assumed_facts(512), exact=True)  # the points bring their own lengths
    return resolve(report, Request(given=given), facts, short, backends=backend_reasons(report))


def predicted(plan: Any, tokens: int, execution: Any = None) -> dict[str, Any]:
    """The planner's estimate for steps of one micro-batch of ``tokens``."""
    from qlora_core.execution.graph_sizes import graph_sizes
    from qlora_run.model_facts import discover_targets
    from qlora_run.planner import estimate_memory

    recipe, execution = plan.recipe_values(), execution or plan.execution_values()
    targets = discover_targets(plan.model, recipe.target_modules)
    graphs = execution.cuda_graphs
    tokens = graph_sizes(tokens)[0] if graphs else tokens
    estimate = estimate_memory(plan.model, targets, recipe, execution, tokens, report=plan.report, accumulating=graphs)
    parts = {part.name: part.bytes for part in estimate.parts}
    return {"predicted": estimate.peak_bytes, "instant": estimate.instant, "parts": parts}


def measure(model: str, method: str, options: argparse.Namespace) -> None:
    """Every point of one model and method; prints a line of JSON for each."""
    own: dict[str, Any] = {"backend": options.backend}
    own |= {"expandable_segments": False} if options.fixed_segments else {}
    plan = plan_for(model, method, {"token_budget": 512, **own})
    from qlora_core.session.environment import set_environment

    assert "torch" not in sys.modules, "torch reads how its allocator works as it is imported"
    set_environment(plan)
    names = _names(model, method, options.backend)
    print("POINT " + json.dumps({"plan": json.loads(to_json(plan)), **names}), flush=True)
    import torch

    from qlora_core import backends
    from qlora_core.memory import device_memory

    before = torch.cuda.device_memory_used(0)
    backend = backends.begin(plan)
    device_memory.prepare(plan)
    loaded = backend.load(plan, print)
    layers = plan.model.num_layers
    for count, share, kernel, kept in product(options.tokens, SHARES, options.kernels, options.dequantized):
        values = {"token_budget": count, "layers_recomputed": round(SHARES[share] * layers), "loss_kernel": kernel}
        values |= {"layers_dequantized": round(kept * layers)}
        values |= {name: word in options.switches for word, name in SWITCHES.items()} | own
        try:
            point = plan_for(model, method, values)
        except QloraRunError:  # the planner refuses: more than this card has
            continue
        row = names | {"tokens": count, "recomputed": share, "kernel": kernel, "switches": options.switches}
        row |= {"dequantized": kept}
        row |= predicted(point, count)
        try:
            row |= steps(backend, loaded, point, count, before)
            if options.calibrate:
                keep(point, row)
        except torch.OutOfMemoryError:
            row["oom"] = True
        print("POINT " + json.dumps(row), flush=True)


def keep(plan: Any, row: dict[str, Any]) -> None:
    """Put a point into this machine's measurements, where later plans find it."""
    from qlora_run.planner.observe import Measured, record

    point = Measured(
        execution=plan.execution_values(),
        largest_tokens=row["tokens"],
        several_micro_batches=False,
        reserved_bytes=row["reserved"],
        outside_bytes=row["driver"] - row["reserved"],
    )
    record(plan, point)


def _names(model: str, method: str, backend: str) -> dict[str, str]:
    name = Path(model).name
    return {"model": name if backend == "peft" else f"{name}, {backend}", "method": method}


def steps(backend: Any, loaded: Any, plan: Any, tokens: int, before_bytes: int) -> dict[str, Any]:
    """Two optimizer steps of one micro-batch; peaks by the allocator and by the driver."""
    import gc

    import torch

    from qlora_core.data import TokenizedExample
    from qlora_core.execution.limits import Limits
    from qlora_core.model.packing import pack

    backend._plan = plan
    execution = plan.execution_values()
    backend._loss = None  # the kernel changes from point to point
    loss_sum = backend.apply(loaded, Limits.of(execution))
    gc.collect()  # what the point before left, weights that it had dequantized among it
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    parameters = [p for p in loaded.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    loaded.model.train()
    vocab = min(plan.model.vocab_size, 30000)
    lengths = [min(2048, tokens - start) for start in range(0, tokens, 2048)]
    rows = [TokenizedExample(input_ids=torch.randint(3, vocab, (n,)).tolist(), supervised=[True] * n) for n in lengths]
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    try:
        for _ in range(2):
            start.record()
            packed = pack(rows, torch.device("cuda", 0))
            (loss_sum(packed) / tokens).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            end.record()
        torch.cuda.synchronize()
        used = torch.cuda.device_memory_used(0) - before_bytes
        stats = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
        return stats | {"driver": used, "seconds": start.elapsed_time(end) / 1000}
    finally:
        optimizer.zero_grad(set_to_none=True)
        del optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--methods", nargs="+", default=["qlora-4", "lora"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048, 8192, 16384])
    parser.add_argument("--kernels", nargs="+", default=["chunked", "triton"])
    parser.add_argument(
        "--dequantized", type=float, nargs="+", default=[0], help="shares of layers that stay dequantized"
    )
    parser.add_argument("--switches", nargs="*", choices=SWITCHES, default=[], help="what to switch on")
    parser.add_argument("--backend", default="peft")
    parser.add_argument("--fixed-segments", action="store_true", help="the allocator's segments do not grow")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--score", type=Path, nargs="+", help="files of earlier runs")
    parser.add_argument("--shapes", type=Path, help="configs by model name, for files without plans")
    parser.add_argument("--calibrate", action="store_true", help="keep the measurements for later plans here")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measure(options.models[0], options.methods[0], options)
        return
    if options.score:
        report(score(options.score, options.shapes, options.fixed_segments))
        return
    rows = [row for model, method in product(options.models, options.methods) for row in _child(model, method, options)]
    if options.json:
        options.json.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    report([row for row in rows if "plan" not in row])


def _child(model: str, method: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    command = [sys.executable, __file__, model, "--child", "--methods", method]
    command += ["--tokens", *map(str, options.tokens), "--kernels", *options.kernels, "--switches", *options.switches]
    command += ["--dequantized", *map(str, options.dequantized)]
    command += ["--backend", options.backend, *(["--calibrate"] if options.calibrate else [])]
    command += ["--fixed-segments"] if options.fixed_segments else []
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    rows = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("POINT ")]
    if done.returncode:
        print(f"{model} {method}: exit {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return rows


def score(files: list[Path], shapes: Path | None, fixed_segments: bool) -> list[dict[str, Any]]:
    """The points of earlier runs with the prediction of now; ``fixed_segments`` where their segments did not grow."""
    lines = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines() if line]
    plans = {(row["model"], row["method"]): json.dumps(row["plan"]) for row in lines if "plan" in row}
    configs = json.loads(shapes.read_text(encoding="utf-8")) if shapes else {}
    own = {"expandable_segments": False} if fixed_segments else {}
    return [row | _scored(row, plans, configs, own) for row in lines if "plan" not in row]


def _scored(
    row: dict[str, Any], plans: dict[tuple[str, str], str], configs: dict[str, Any], own: dict[str, Any]
) -> dict[str, Any]:
    from qlora_profiles.plan import RunPlan

    key = row["model"], row["method"]
    if key in plans:
        plan = from_json(plans[key], RunPlan, "the file")
    else:
        plan = _plan_by_shape(row["model"], row["method"], configs[row["model"]])
    layers = round(SHARES[row["recomputed"]] * plan.model.num_layers)
    execution = msgspec.structs.replace(
        plan.execution_values(),
        loss_kernel=row["kernel"],
        token_budget=row["tokens"],
        layers_recomputed=layers,
        layers_dequantized=round(row.get("dequantized", 0) * plan.model.num_layers),
        **{name: word in _switches(row) for word, name in SWITCHES.items()},
        **own,
    )
    return predicted(plan, row["tokens"], execution)


def _switches(row: dict[str, Any]) -> list[str]:
    """What was on; older files know graphs only."""
    found: list[str] = row.get("switches", ["graphs"] if row.get("graphs") == "yes" else [])
    return found


def _plan_by_shape(model: str, method: str, config: Any) -> Any:
    """A plan for a model of which only the config is known, on the machine of the first measurements."""
    from qlora_core.data.pipeline import assumed_facts
    from qlora_profiles.hardware import Gpu, HardwareReport, Platform, Torch
    from qlora_profiles.plan import Given, Request
    from qlora_run.model_facts.layout import tensors_from_config
    from qlora_run.model_facts.summary import summarise
    from qlora_run.planner import resolve

    size = 141 * GIB
    gpu = Gpu(name="NVIDIA H200", capability=(9, 0), vram_total_bytes=size, vram_free_bytes=size)
    report = HardwareReport(platform=Platform(system="linux"), gpus=(gpu,), torch=Torch(version="2.11.0", build="cuda"))
    facts = summarise(model, config, tensors_from_config(config, model), exact=True, fingerprint="")
    given = {"method": Given(value=method, source="cli")}
    return resolve(report, Request(given=given), facts, assumed_facts(512))


def report(rows: list[dict[str, Any]]) -> None:
    """A line for each model and method, and one for all points."""
    measured = [r for r in rows if "driver" in r]
    print("| model | method | points | median | worst over | worst under | oom |\n|" + " --- |" * 7)
    for key in dict.fromkeys((r["model"], r["method"]) for r in rows):
        _line(" | ".join(key), [r for r in rows if (r["model"], r["method"]) == key])
    _line("all | ", rows)
    for r in sorted(measured, key=lambda r: -abs(_error(r)))[:12]:
        sizes = (
            f"predicted {r['predicted'] / GIB:.2f}, driver {r['driver'] / GIB:.2f}, reserved {r['reserved'] / GIB:.2f}"
        )
        name = f"{r['model']} {r['method']} {r['tokens']} {r['recomputed']} {r['kernel']} ({r['instant']})"
        name += f" {r['dequantized']:.0%} dequantized" if r.get("dequantized") else ""
        print(f"{name}: {_error(r):+.1%} {sizes}")


def _error(row: dict[str, Any]) -> float:
    return float(row["predicted"] / row["driver"] - 1)


def _line(name: str, rows: list[dict[str, Any]]) -> None:
    errors = [_error(r) for r in rows if "driver" in r]
    if errors:
        cells = f"{median(map(abs, errors)):.1%} | {max(errors):+.1%} | {min(errors):+.1%}"
        print(f"| {name} | {len(errors)} | {cells} | {sum('oom' in r for r in rows)} |")


if __name__ == "__main__":
    main()
