"""bitsandbytes: a product with a 4-bit and with an 8-bit weight, and a step of its 8-bit optimizer."""

import torch

from qlora_core.kernels.trial import require_close
from qlora_core.model.bitsandbytes import linear_4bit
from qlora_core.selftest.arithmetic import accelerator
from qlora_core.selftest.registry import Found

QUANTISATION_ERROR = 0.15
"""Most that rounding a normal weight to 4 bits may change a product, relatively."""


def nf4_product() -> Found:
    """A 4-bit product, forward and backward, against the same product of the dequantised weight."""
    from bitsandbytes.functional import dequantize_4bit

    device = accelerator()
    dtype = torch.float32 if device == "cpu" else torch.float16
    plain = torch.randn(256, 256)
    layer = linear_4bit(plain, device, dtype=dtype)
    x = torch.randn(8, 256, device=device, dtype=dtype, requires_grad=True)
    out = layer(x)
    out.sum().backward()
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(dtype)
    require_close(out, x @ weight.t(), "a 4-bit product", 0.01)
    require_close(weight.float().cpu(), plain, "a weight in 4 bits", QUANTISATION_ERROR)
    assert x.grad is not None
    require_close(x.grad, weight.sum(0).expand_as(x), "the gradient through a 4-bit product", 0.01)
    return {"device": device}


def int8_product() -> Found:
    """An 8-bit product, forward and backward, against the plain one."""
    from bitsandbytes.nn import Linear8bitLt

    device = accelerator()
    plain = torch.randn(256, 256)
    layer = Linear8bitLt(256, 256, bias=False, has_fp16_weights=False)
    layer.load_state_dict({"weight": plain})
    layer = layer.to(device)
    x = torch.randn(8, 256, device=device, dtype=torch.float16, requires_grad=True)
    out = layer(x)
    out.float().sum().backward()
    require_close(out.detach().float().cpu(), x.detach().float().cpu() @ plain.t(), "an 8-bit product", 0.05)
    assert x.grad is not None
    return {"device": device}


def adam8bit_step() -> Found:
    """Steps of the 8-bit AdamW against torch's; from 4,096 values on its state really is in 8 bits."""
    from bitsandbytes.optim import AdamW8bit

    device = accelerator()
    start, gradient = torch.randn(8192, device=device), torch.randn(8192, device=device)
    small, plain = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optimizer = AdamW8bit([small], lr=1e-2)
    reference = torch.optim.AdamW([plain], lr=1e-2, eps=1e-8, weight_decay=1e-2)
    for _ in range(2):
        small.grad, plain.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        reference.step()
    state = optimizer.state[small]
    if state["state1"].dtype != torch.uint8:
        raise ArithmeticError(f"its state is {state['state1'].dtype}, not 8 bits")
    require_close(small.detach() - start, plain.detach() - start, "an 8-bit AdamW step", 0.1)
    return {"device": device}
