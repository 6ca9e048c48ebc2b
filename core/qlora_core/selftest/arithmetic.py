"""torch itself: what it was built for, a product on the device, a fused optimizer step."""

import torch

from qlora_core.kernels.trial import require_close
from qlora_core.selftest.registry import Found


def accelerator() -> str:
    """What would compute: ``cuda`` (ROCm too), ``xpu``, ``mps`` or ``cpu``."""
    if torch.cuda.is_available():
        return "cuda"
    if torch.xpu.is_available():
        return "xpu"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def torch_build() -> Found:
    """What torch says of itself and of the cards that it sees."""
    found: Found = {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip}
    found["device"] = accelerator()
    if found["device"] == "cuda":
        cards = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
        found |= {
            "capabilities": [list(card) for card in cards],
            "architectures": torch.cuda.get_arch_list(),
            "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
        }
    elif torch.version.cuda:
        found["refused"] = _why_no_cuda()
    return found


def _why_no_cuda() -> str:
    """The driver's own words, which ``is_available`` swallows."""
    try:
        torch.cuda.init()
    except Exception as error:
        return str(error).splitlines()[0]
    return "torch sees no card"


def device_product() -> Found:
    """A matrix product, forward and backward, in the 16-bit format that training would use, on the accelerator."""
    device = accelerator()
    dtype = _training_dtype(device)
    a, b = torch.randn(64, 128), torch.randn(128, 32)
    x = a.to(device, dtype, copy=True).requires_grad_()
    out = x @ b.to(device, dtype)
    out.float().sum().backward()
    require_close(out.detach().float().cpu(), a @ b, "a matrix product")
    assert x.grad is not None
    require_close(x.grad.float().cpu(), b.sum(1).expand_as(a), "its gradient")
    return {"device": device, "dtype": str(dtype).removeprefix("torch.")}


def _training_dtype(device: str) -> torch.dtype:
    if device == "cpu":
        return torch.float32
    if device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def fused_adamw() -> Found:
    """A fused AdamW step against the plain one."""
    device = accelerator()
    start, gradient = torch.randn(4096, device=device), torch.randn(4096, device=device)
    results = [_stepped(start, gradient, fused) for fused in (True, False)]
    require_close(results[0], results[1], "a fused AdamW step", 1e-5)
    return {"device": device}


def _stepped(start: torch.Tensor, gradient: torch.Tensor, fused: bool) -> torch.Tensor:
    weight = torch.nn.Parameter(start.clone())
    weight.grad = gradient.clone()
    torch.optim.AdamW([weight], lr=1e-2, fused=fused).step()
    return weight.detach()
