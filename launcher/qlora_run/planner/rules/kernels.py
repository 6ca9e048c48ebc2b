"""One small function for each setting that picks a kernel."""

from typing import Any

from qlora_profiles.architectures import architecture_of
from qlora_profiles.errors import EnvironmentProblem, QloraRunError, UserError
from qlora_profiles.plan import Resolved
from qlora_run.planner.context import PlanningContext
from qlora_run.planner.cost.loss import loss_chunk_tokens as tile_tokens
from qlora_run.planner.rules.machine import has_bf16, ram_budget_bytes, torch_at_least

LARGEST_HEAD_DIM = 256
"""Values of a head that FlashAttention 2, which torch's kernel is, takes at most."""


def attention(s: PlanningContext) -> Resolved:
    """torch's kernel for sequences of different lengths where it runs, else plain scaled dot products."""
    missing = _varlen_missing(s)
    if missing is None:
        return Resolved("varlen", "probe", "torch's own kernel for packed examples: no mask, no padding")
    return Resolved("sdpa", "probe", missing)


def _varlen_missing(s: PlanningContext) -> str | None:
    family = architecture_of(s.model.model_type)
    checks = (
        (not s.on_cuda, "the packed kernel needs an NVIDIA card"),
        (not torch_at_least(s, 2, 10), "the packed kernel needs torch 2.10"),
        (not has_bf16(s.gpu), "the packed kernel needs a card of capability 8.0"),
        (s.resolved["compute_dtype"].value == "float32", "the packed kernel computes in 16 bits only"),
        (s.model.head_dim > LARGEST_HEAD_DIM, f"heads of {s.model.head_dim} are too wide for the packed kernel"),
        (family.caps_scores, f"{s.model.model_type} caps its attention scores; no packed kernel does"),
    )
    failed_here = s.selftest_results.problem("varlen")
    tried = f"the packed kernel failed here: {failed_here}" if failed_here else None
    return next((reason for failed, reason in checks if failed), tried)


def attention_problem(s: PlanningContext, value: Any) -> QloraRunError | None:
    """A kernel that this machine or model cannot use."""
    if value == "varlen" and (missing := _varlen_missing(s)):
        return UserError(f"attention varlen: {missing}", "--attention sdpa")
    if value == "flash" and s.report.version_of("flash-attn") is None:
        return EnvironmentProblem("attention flash: the package flash-attn is not installed", "--attention auto")
    if value == "flash" and not has_bf16(s.gpu):
        return UserError("attention flash: needs a card of capability 8.0", "--attention sdpa")
    return None


def loss_kernel(s: PlanningContext) -> Resolved:
    """In chunks: nothing of a frozen head is computed twice. By our kernel where Triton works."""
    if s.model.own_logits:
        return Resolved("logits", "probe", "this architecture makes its logits in its own way")
    if not s.on_cuda or s.given_method == "full":
        return Resolved("chunked", "default", "never holds all logits; loss and gradient in one pass")
    if missing := _loss_by_triton_missing(s):
        return Resolved("chunked", "probe", f"never holds all logits ({missing})")
    return Resolved("triton", "probe", "never holds all logits, and those it holds in 16 bits")


def loss_kernel_problem(s: PlanningContext, value: Any) -> QloraRunError | None:
    """Our kernel where it cannot run."""
    if value == "triton" and (missing := _loss_by_triton_missing(s)):
        return EnvironmentProblem(f"loss_kernel triton: {missing}", "--loss-kernel chunked")
    return None


def _loss_by_triton_missing(s: PlanningContext) -> str | None:
    failed_here = s.selftest_results.problem("cross_entropy")
    tried = f"our kernel failed here: {failed_here}" if failed_here else None
    return _triton_missing(s) or tried if s.on_cuda else "needs an NVIDIA card"


def _liger_missing(s: PlanningContext) -> str | None:
    checks = (
        (not s.on_cuda, "needs an NVIDIA card"),
        (s.report.version_of("liger-kernel") is None, "the package liger-kernel is not installed"),
    )
    failed_here = s.selftest_results.problem("liger")
    tried = f"a kernel failed here: {failed_here}" if failed_here else None
    return next((reason for failed, reason in checks if failed), None) or _triton_missing(s) or tried


def loss_chunk_tokens(s: PlanningContext) -> Resolved:
    """As many tokens at a time as keep the tile of logits small."""
    budget = s.value("vram_budget_bytes") if s.on_cuda else ram_budget_bytes(s)
    vocabulary = s.model.vocab_size
    tokens = tile_tokens(vocabulary, budget, s.value("loss_kernel"))
    return Resolved(tokens, "tuner", f"a small tile of {vocabulary:,} logits a token")


def optimizer_kernel(s: PlanningContext) -> Resolved:
    """One fused pass over all values where torch has it."""
    if failed_here := s.selftest_results.problem("adamw"):
        return Resolved("plain", "probe", f"the fused one failed here: {failed_here}")
    if s.value("device") in ("cuda", "cpu"):
        return Resolved("fused", "probe", "one pass over all values, same mathematics")
    return Resolved("plain", "probe", "no fused optimizer on this device")


def check_optimizer(s: PlanningContext) -> None:
    """Raises: EnvironmentProblem for an 8-bit optimizer that was tried here and does not work."""
    failed_here = s.selftest_results.problem("adam8bit")
    if s.value("optimizer") == "adamw-8bit" and failed_here:
        raise EnvironmentProblem(f"optimizer adamw-8bit: it failed here: {failed_here}", "--optimizer adamw")


def adapter_kernel(s: PlanningContext) -> Resolved:
    """Adapters inside the matrix products where launches of kernels cost time, and nothing is drawn between them."""
    if s.value("backend") != "peft":
        return Resolved("plain", "probe", "the backend has its own")
    if not s.on_cuda:
        return Resolved("plain", "probe", "fewer kernels help on a card only")
    if s.value("lora_dropout") > 0:
        return Resolved("plain", "probe", "dropout in front of the adapters is PEFT's")
    if s.given_method in ("qlora-8", "full"):
        return Resolved("plain", "probe", f"nothing to fuse with the method {s.given_method}")
    return Resolved("fused", "probe", "few kernels, one gradient for layers that read the same")


def dequantize_kernel(s: PlanningContext) -> Resolved:
    """Our own where Triton works, and where adapters are fused: it is part of their products."""
    if missing := _dequantize_kernel_missing(s):
        return Resolved("bitsandbytes", "probe", missing)
    return Resolved("triton", "probe", "the same bits in about half the time")


def dequantize_kernel_problem(s: PlanningContext, value: Any) -> QloraRunError | None:
    """Our kernel where it cannot run, or would never be called."""
    if value == "triton" and (missing := _dequantize_kernel_missing(s)):
        return EnvironmentProblem(f"dequantize_kernel triton: {missing}", "--dequantize-kernel bitsandbytes")
    return None


def _dequantize_kernel_missing(s: PlanningContext) -> str | None:
    checks = (
        (not s.on_cuda, "needs an NVIDIA card"),
        (s.value("adapter_kernel") != "fused", "for fused adapters only"),
        (s.given_method == "lora", "the base stays in 16 bits"),
    )
    failed_here = s.selftest_results.problem("dequantize")
    tried = f"it failed here: {failed_here}" if failed_here else None
    return next((reason for failed, reason in checks if failed), None) or _triton_missing(s) or tried


def _triton_missing(s: PlanningContext) -> str | None:
    there = s.report.version_of("triton") or s.report.version_of("triton-windows")
    failed_here = s.selftest_results.problem("triton")
    if there and failed_here:
        return f"a kernel failed here: {failed_here}"
    return None if there else "Triton is missing"


def layer_kernels(s: PlanningContext) -> Resolved:
    """Liger's and ours, where Liger is installed: faster and smaller at every size tried (bench/RESULTS.md)."""
    if missing := _layer_kernels_missing(s):
        return Resolved("plain", "probe", missing)
    return Resolved("liger", "probe", "norms, rotations and activations in single kernels: faster, and smaller")


def layer_kernels_problem(s: PlanningContext, value: Any) -> QloraRunError | None:
    """Kernels that are not installed, or not for this model or backend."""
    if value == "liger" and (missing := _liger_missing(s)):
        return EnvironmentProblem(f"layer_kernels liger: {missing}", "--layer-kernels plain")
    if value == "liger" and (missing := _layer_kernels_missing(s)):
        return UserError(f"layer_kernels liger: {missing}", "--layer-kernels plain")
    return None


def _layer_kernels_missing(s: PlanningContext) -> str | None:
    checks = (
        (s.value("backend") != "peft", "the backend has its own"),
        (not architecture_of(s.model.model_type).layer_kernels, f"Liger's kernels are not for {s.model.model_type}"),
        (s.given_method == "full", "with all weights trained the model's own code computes"),
    )
    return next((reason for failed, reason in checks if failed), None) or _liger_missing(s)


def cuda_graphs(s: PlanningContext) -> Resolved:
    """Off, unless the search finds them faster."""
    return Resolved(False, "default", _cuda_graphs_missing(s) or "not needed")


def graphs_possible(s: PlanningContext, method: str, offloaded: bool) -> tuple[bool, ...]:
    """Whether graphs are used, as far as there is a choice: what a person gave is the only one."""
    if "cuda_graphs" in s.given:
        given = bool(s.given["cuda_graphs"].value)
        return () if given and offloaded else (given,)
    cannot = offloaded or method == "qlora-8" or _cuda_graphs_missing(s)
    return (False,) if cannot else (False, True)


def cuda_graphs_problem(s: PlanningContext, value: Any) -> QloraRunError | None:
    """Graphs where something cannot be captured."""
    if value and (missing := _cuda_graphs_missing(s)):
        return UserError(f"cuda_graphs: {missing}", "--cuda-graphs no")
    return None


def _cuda_graphs_missing(s: PlanningContext) -> str | None:
    checks = (
        (not s.on_cuda, "for CUDA only"),
        (s.value("backend") != "peft", "with the backend peft only"),
        (s.value("attention") != "varlen", "they need the attention varlen: a mask has a shape of its own each time"),
        (s.value("loss_kernel") == "logits", "this architecture makes its logits in its own way"),
        (s.value("lora_dropout") > 0, "dropout draws other numbers each time"),
        (s.value("offload_activations"), "activations in main memory cannot be captured"),
        (s.given_method == "qlora-8", "8-bit products cannot be captured"),
    )
    failed_here = s.selftest_results.problem("graphs")
    tried = f"capturing failed here: {failed_here}" if failed_here else None
    return next((reason for failed, reason in checks if failed), tried)
