"""How long an optimizer step may take: a roofline from the data sheet, with a floor set by kernel launches.

Fitted to one H200 with six models from 0.6B to 8B, and with our own kernels to one of 8B (``step_ms`` of
tests/support/measured_h200.csv, by bench/memory.py); good for choosing between executions of one machine, rough in
seconds anywhere else. tests/launcher/planner/cost/test_speed.py holds the median to 3% there, bench/search.py the
choices to grids measured whole. Constants without another source below come from that fit.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from qlora_core.execution.graph_sizes import padded_size
from qlora_profiles.architectures import architecture_of
from qlora_profiles.facts import Ceilings, DataFacts, ModelFacts, TimeEstimate
from qlora_profiles.hardware import Gpu, HardwareReport
from qlora_run.planner.cost import weights
from qlora_run.planner.cost.gpu_specs import specs_of
from qlora_run.planner.cost.inputs import CostInputs
from qlora_run.planner.cost.memory import Costs
from qlora_run.planner.cost.sampled_steps import Steps, micro_batches, sampled_steps, scaled

MATMUL_SHARE = 0.65
BANDWIDTH_SHARE = 0.9
ATTENTION_SHARE = 0.35
"""What of the data sheet is reached by matrix products, by copies and by attention (H200)."""

PRODUCT_SHARE, COPY_SHARE, USUAL_LAUNCH_SECONDS = 0.814, 1.065, 5.2e-6
"""The same for ceilings that core/qlora_core/train/device_benchmark.py measures, and the launch of a small kernel
(seconds) by the host that the times below come from."""

TOUCHES, FUSED_TOUCHES, INT8_TOUCHES = 26, 11, 60
"""How often each kept byte is read or written over forward and backward: eager modules, fused kernels, and 8-bit
products, which quantise what they read and look for outliers in it."""

LAUNCH_SECONDS = {
    "qlora-4": (0.0053, 0.0042),
    "qlora-8": (0.0069, 0.0058),
    "lora": (0.0037, 0.0030),
    "full": (0.0029, 0.0025),
}
"""Time of the host to launch one layer's kernels, forward and backward, and once more when it recomputes."""
FUSED_LAUNCHES = 0.8
"""What fused layers leave of it: half the kernels, but as much of the host's other work; 8-bit products ask the
card about outliers in between, and wait."""
LOGIT_TOUCHES, USUAL_LOGIT_TOUCHES = 12, 60
"""Bytes read or written for each logit by our kernel, which fuses everything, and by the others."""
GRAPH_LAUNCHES = 0.1
"""What CUDA graphs leave of the launching: the card itself starts each kernel."""
OVERLAP, GRAPH_OVERLAP = 4.0, 1.5
"""How well computing and launching hide each other: exponents of their norm, 1 for not at all. In a graph what is
left of launching is the card's own."""
ALIKE_TOKENS = 64
"""Micro-batches whose sizes round to the same multiple of so many tokens take the same time: set by hand."""
MORE_NORMS_LAUNCHES = 1.2
"""With norms behind attention and MLP as well."""
EAGER_LAUNCHES, SCORE_TOUCHES = 1.6, 120
"""With eager attention, and the bytes that it moves for each score, forward and backward (Gemma 2 2B on an H200)."""
REMATERIALIZED_TOUCHES = 3
"""Bytes moved for each one that is made again: about two are read for it."""
OFFLOAD_BYTES_PER_SECOND = 12e9
"""Copies between the card and page-locked memory, each way, while the card computes: set by hand from an H200."""
HOST_FACTOR = {"windows": 1.4, "linux": 1.0}
"""How long launching takes beside Linux: a guess for Windows, on which nothing was measured."""

FLOAT32_SHARE = 0.25
"""Float32 products run at about a quarter of the 16-bit rate: a guess."""

CORE_FLOPS = 30e9
"""Float32 operations per second of one CPU core in a matrix product: a guess."""
CORE_DEQUANTIZES = 0.3e9
"""4-bit values that one CPU core dequantizes per second: a guess."""
CPU_LAUNCH_SECONDS = 0.001
"""Beside computing, for each layer: a guess."""
CPU_BYTES_PER_SECOND = 20e9
"""Of main memory: a guess."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What the machine computes in a second: operations, attention's operations, bytes moved, weights dequantized."""

    flops: float
    attention_flops: float
    bytes: float
    dequantized_params: float
    layer_launch_seconds: float
    recompute_launch_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a step has to compute, whatever the machine.

    ``steps`` are the lengths of the examples of sampled optimizer steps, ``supervised_share`` is the supervised
    part of their tokens. ``attention_width``, ``kept_token_bytes``, ``rematerialized_token_bytes`` and ``score_bytes``
    are means over all layers;
    ``left_out_params`` are those of ``linear_params`` whose products layers that recompute leave out.
    """

    steps: Steps
    supervised_share: float
    mean_tokens: float
    linear_params: int
    left_out_params: int
    dequantized_params: float
    head_params: int
    attention_width: float
    kept_token_bytes: float
    rematerialized_token_bytes: float
    num_layers: int
    trains_weights: bool
    dense_attention: bool
    score_bytes: float
    touches: int
    logit_touches: int
    offloaded_token_bytes: int
    graphs: bool
    launches: float

    @property
    def step_tokens(self) -> float:
        """Tokens of a sampled optimizer step."""
        return sum(map(sum, self.steps)) / len(self.steps)

    def of(self, step_tokens: float) -> "Work":
        """The work of steps that have so many tokens."""
        longest = max(max(step) for step in self.steps)
        return replace(self, steps=scaled(self.steps, step_tokens / self.step_tokens, max(longest, round(step_tokens))))


def rates(report: HardwareReport, gpu: Gpu | None, inputs: CostInputs, ceilings: Ceilings | None = None) -> Rates:
    """The machine's rates on the device that ``inputs`` name, from its measured ceilings where there are some."""
    if inputs.device == "cuda" and gpu is not None:
        return _measured_rates(ceilings, inputs) if ceilings else _card_rates(report, gpu, inputs)
    cores = report.cpu_cores_physical or max(1, (report.cpu_cores_logical or 2) // 2)
    return Rates(
        flops=cores * CORE_FLOPS,
        attention_flops=cores * CORE_FLOPS * 0.5,
        bytes=CPU_BYTES_PER_SECOND,
        dequantized_params=cores * CORE_DEQUANTIZES,
        layer_launch_seconds=CPU_LAUNCH_SECONDS,
        recompute_launch_seconds=CPU_LAUNCH_SECONDS / 2,
    )


def _measured_rates(ceilings: Ceilings, inputs: CostInputs) -> Rates:
    host = ceilings.launch_seconds / USUAL_LAUNCH_SECONDS
    once, again = _launch_seconds(inputs)
    moved = ceilings.copy_bytes * COPY_SHARE
    return Rates(
        flops=ceilings.flops * PRODUCT_SHARE,
        attention_flops=ceilings.flops * PRODUCT_SHARE * ATTENTION_SHARE / MATMUL_SHARE,
        bytes=moved,
        dequantized_params=moved / (0.5 + inputs.compute_bytes),
        layer_launch_seconds=once * host,
        recompute_launch_seconds=again * host,
    )


def _card_rates(report: HardwareReport, gpu: Gpu, inputs: CostInputs) -> Rates:
    card = specs_of(gpu)
    peak = card.tflops * 1e12 * (FLOAT32_SHARE if inputs.compute_bytes == 4 else 1.0)
    moved = card.bandwidth_gbs * 1e9 * BANDWIDTH_SHARE
    host = HOST_FACTOR.get(report.platform.system, 1.0)
    once, again = _launch_seconds(inputs)
    return Rates(
        flops=peak * MATMUL_SHARE,
        attention_flops=peak * ATTENTION_SHARE,
        bytes=moved,
        dequantized_params=moved / (0.5 + inputs.compute_bytes),
        layer_launch_seconds=once * host,
        recompute_launch_seconds=again * host,
    )


def _launch_seconds(inputs: CostInputs) -> tuple[float, float]:
    once, again = LAUNCH_SECONDS[inputs.method]
    share = FUSED_LAUNCHES if inputs.fused_kernels and inputs.method != "qlora-8" else 1.0
    return once * share, again * share


def work_of_step(
    model: ModelFacts, data: DataFacts, inputs: CostInputs, costs: Costs, examples: int, max_length: int
) -> Work:
    """The work of a sampled step of ``examples`` examples."""
    eager = architecture_of(model.model_type).caps_scores
    groups, counts = costs.groups, [group.count for group in model.layers]
    of_costs = [group.count for group in groups]
    return Work(
        steps=sampled_steps(data, examples, max_length),
        supervised_share=min(1.0, data.mean_supervised_tokens / max(1.0, data.mean_tokens)),
        mean_tokens=max(1.0, min(data.mean_tokens, float(max_length))),
        linear_params=model.met_linear_params,
        left_out_params=weights.last_params(model) if groups[0].layer.skips_last else 0,
        dequantized_params=model.linear_params if inputs.quantised else 0,
        head_params=model.vocab_size * model.hidden_size,
        attention_width=_mean(counts, [group.num_heads * group.head_dim for group in model.layers]),
        kept_token_bytes=_mean(of_costs, [group.layer.kept_token for group in groups]),
        rematerialized_token_bytes=_mean(of_costs, [group.layer.rematerialized_token for group in groups]),
        num_layers=model.num_layers,
        trains_weights=inputs.full,
        dense_attention=inputs.attention == "sdpa",
        score_bytes=SCORE_TOUCHES * _mean(counts, [group.num_heads for group in model.layers]) if eager else 0,
        touches=_touches(inputs),
        logit_touches=(LOGIT_TOUCHES if inputs.loss_kernel == "triton" else USUAL_LOGIT_TOUCHES) * model.vocab_size,
        offloaded_token_bytes=costs.offloaded_token,
        graphs=inputs.cuda_graphs,
        launches=(MORE_NORMS_LAUNCHES if any(group.post_norms for group in model.layers) else 1.0)
        * (EAGER_LAUNCHES if eager else 1.0),
    )


def _mean(counts: Sequence[int], of_groups: Sequence[int]) -> float:
    """The mean over all layers of a number that each group's layers have; ``counts`` are those of the groups."""
    return sum(count * each for count, each in zip(counts, of_groups, strict=True)) / sum(counts)


def _touches(inputs: CostInputs) -> int:
    if inputs.method == "qlora-8":
        return INT8_TOUCHES
    return FUSED_TOUCHES if inputs.fused_kernels else TOUCHES


def step_seconds(work: Work, machine: Rates, token_budget: int, recomputed: int) -> float:
    """Seconds of a sampled optimizer step, cut into micro-batches of at most ``token_budget`` tokens."""
    counts = _sizes(work.steps, token_budget)
    seconds = {tokens: _micro_batch_seconds(work, machine, tokens, token_budget, recomputed) for tokens in counts}
    return sum(seconds[tokens] * count for tokens, count in counts.items()) / len(work.steps)


@lru_cache(maxsize=512)
def _sizes(steps: Steps, token_budget: int) -> Counter[int]:
    """How many micro-batches of about each size the steps have: near sizes take the same time."""
    sizes = [tokens for step in micro_batches(steps, token_budget) for tokens in step]
    return Counter(tokens if tokens < ALIKE_TOKENS else round(tokens / ALIKE_TOKENS) * ALIKE_TOKENS for tokens in sizes)


def _micro_batch_seconds(work: Work, machine: Rates, tokens: int, token_budget: int, recomputed: int) -> float:
    """Computing, launching or copying, whichever takes longest; graphs pad the tokens and leave little of launching."""
    again = recomputed / work.num_layers
    laid = padded_size(tokens, max(token_budget, tokens)) if work.graphs else tokens
    computing = _token_seconds(work, machine, again, laid) * laid
    computing += (2 + again) * work.dequantized_params / machine.dequantized_params
    copying = 2 * recomputed * work.offloaded_token_bytes * tokens / OFFLOAD_BYTES_PER_SECOND
    launching = work.num_layers * machine.layer_launch_seconds + recomputed * machine.recompute_launch_seconds
    launching *= work.launches * (GRAPH_LAUNCHES if work.graphs else 1.0)
    power = GRAPH_OVERLAP if work.graphs else OVERLAP
    return float((computing**power + launching**power + copying**power) ** (1 / power))


def _token_seconds(work: Work, machine: Rates, again: float, tokens: float) -> float:
    """Seconds of computing for each token; ``again`` is the share of layers computed a second time.

    Operations as usually counted: frozen weights take 2 forward and 2 backward for each value, trained ones 2 more.
    """
    products = (6 if work.trains_weights else 4) * work.linear_params + 4 * work.supervised_share * work.head_params
    products += 2 * again * (work.linear_params - work.left_out_params)
    seen = 2 * tokens if work.dense_attention else work.mean_tokens
    attention = (6 + 2 * again) * work.attention_width * seen * work.num_layers
    made = work.kept_token_bytes + work.rematerialized_token_bytes
    moved = (work.touches * made + work.score_bytes * tokens) * (1 + 0.4 * again) * work.num_layers
    moved += REMATERIALIZED_TOUCHES * work.rematerialized_token_bytes * work.num_layers
    moved += work.supervised_share * work.logit_touches
    return products / machine.flops + attention / machine.attention_flops + moved / machine.bytes


def total_steps(train_rows: int, examples_per_step: int, epochs: float, max_steps: int | None) -> int:
    """Optimizer steps of the whole run; the last step of an epoch may be smaller."""
    by_epochs = math.ceil(epochs * math.ceil(train_rows / examples_per_step))
    return max(1, by_epochs if max_steps is None else max_steps)


def estimate_time(
    report: HardwareReport,
    gpu: Gpu | None,
    inputs: CostInputs,
    steps: int,
    seconds: float,
    measured_scale: float | None = None,
) -> TimeEstimate:
    """A range around ``steps`` x ``seconds``, wider where less is known of the machine.

    ``measured_scale`` is what earlier runs here took over what was predicted.
    """
    if measured_scale is not None:
        seconds *= measured_scale
        low, high, basis = 0.85, 1.2, "measured on this card"
    elif inputs.device != "cuda" or gpu is None:
        low, high, basis = 0.5, 2.0, "rough, from the number of CPU cores"
    elif specs_of(gpu).listed:
        low, high, basis = 0.75, 1.5, "rough, from the card's data sheet"
    else:
        low, high, basis = 0.4, 2.5, "very rough: this card is not in the table, its generation stands in"
    total = steps * seconds
    return TimeEstimate(
        steps=steps,
        step_seconds=seconds,
        seconds_low=low * total,
        seconds_high=high * total,
        basis=basis,
        measured_scale=measured_scale,
    )
