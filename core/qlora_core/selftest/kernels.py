"""What is beyond torch's everyday kernels: packed attention, CUDA graphs, Triton, Liger's layers."""

import importlib
from typing import Any

import torch

from qlora_core.kernels.trial import random_inputs, require_close, require_same
from qlora_core.selftest.arithmetic import accelerator
from qlora_core.selftest.registry import Found, Unavailable

LENGTHS = (5, 11, 16)


def varlen_attention() -> Found:
    """torch's packed attention, forward and backward, against each sequence on its own."""
    if accelerator() != "cuda":
        raise Unavailable("the packed kernel needs a CUDA card")
    from torch.nn.attention.varlen import varlen_attn

    total, heads, width = sum(LENGTHS), 4, 64
    q, k, v = (torch.randn(total, heads, width, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    q.requires_grad_()
    ends = torch.tensor([0, *_running(LENGTHS)], device="cuda", dtype=torch.int32)
    out = varlen_attn(q, k, v, ends, ends, max(LENGTHS), max(LENGTHS), window_size=(-1, 0))
    assert isinstance(out, torch.Tensor)
    out.float().sum().backward()
    require_close(out.detach().float(), _apart(q.detach(), k, v), "packed attention")
    if q.grad is None or not bool(q.grad.isfinite().all()):
        raise ArithmeticError("packed attention has no finite gradient")
    return {"device": "cuda"}


def _running(lengths: tuple[int, ...]) -> list[int]:
    return [sum(lengths[: i + 1]) for i in range(len(lengths))]


def _apart(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention of each sequence alone, in float32: T x heads x width."""
    parts = []
    for one in zip(*(t.float().transpose(0, 1).split(LENGTHS, dim=1) for t in (q, k, v)), strict=True):
        parts.append(torch.nn.functional.scaled_dot_product_attention(one[0], one[1], one[2], is_causal=True))
    return torch.cat([part.transpose(0, 1) for part in parts])


def cuda_graph() -> Found:
    """A product and its gradient, captured, and run again on other numbers."""
    if accelerator() != "cuda":
        raise Unavailable("CUDA graphs need a CUDA card")
    x, weight = torch.randn(64, 32, device="cuda"), torch.randn(32, 32, device="cuda", requires_grad=True)
    gradient, stream = torch.zeros_like(weight), torch.cuda.Stream()

    def compute() -> None:
        gradient.copy_(torch.autograd.grad((x @ weight).tanh().sum(), weight)[0])

    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        compute()  # so that nothing is set up while capturing
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        compute()
    x.copy_(torch.randn_like(x))
    graph.replay()
    replayed = gradient.clone()
    compute()
    require_close(replayed, gradient, "a captured gradient")
    return {"device": "cuda"}


def dequantize_kernel() -> Found:
    """Our kernel for 4-bit weights, against bitsandbytes."""
    if accelerator() != "cuda":
        raise Unavailable("the kernel needs a CUDA card")
    from qlora_core.kernels.dequantize import triton_dequantize

    triton_dequantize(torch.device("cuda"), _half())
    return {"device": "cuda"}


def loss_kernel() -> Found:
    """Our kernel for the loss, against torch's words for it."""
    if accelerator() != "cuda":
        raise Unavailable("the kernel needs a CUDA card")
    from qlora_core.kernels.logit_gradients import triton_cross_entropy

    for cap in (None, 3.0):
        triton_cross_entropy(torch.device("cuda"), _half(), 10_001, cap)
    return {"device": "cuda"}


def _half() -> torch.dtype:
    """The 16 bits that a card computes in."""
    return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16


def triton_compiles() -> Found:
    """A kernel of our own: Triton needs a C compiler, headers and a driver that match, and only compiling tells."""
    if accelerator() == "cpu":
        raise Unavailable("Triton kernels need a card")
    kernel: Any = importlib.import_module("qlora_core.selftest.triton_kernel")
    device = accelerator()
    x = torch.arange(1000, device=device, dtype=torch.float32)
    out = torch.empty_like(x)
    kernel.double[(4,)](x, out, 1000, BLOCK=256)
    require_close(out, 2 * x, "a Triton kernel", 0)
    return {"device": device, "version": kernel.triton.__version__}


def liger_layers() -> Found:
    """Liger's norm and activation, with their gradients, against torch's."""
    if accelerator() != "cuda":
        raise Unavailable("Liger's kernels need a CUDA card")
    from torch.nn.functional import rms_norm, silu

    from qlora_core.kernels.norm_rope_swiglu import liger_kernels
    from qlora_profiles.architectures import NormStyle

    kernels, device = liger_kernels(), torch.device("cuda")
    weight, inputs = torch.ones(64, device=device), random_inputs([(48, 64), (48, 64)], device, torch.float32)
    require_same(
        lambda x: kernels.norm(x, weight, 1e-6, 0.0, NormStyle().casting, False),
        lambda x: rms_norm(x, (64,), weight, 1e-6),
        inputs[:1],
    )
    require_same(kernels.silu, lambda gate, up: silu(gate) * up, inputs)
    return {"device": "cuda"}
