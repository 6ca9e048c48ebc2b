"""What Liger's kernels compute, in words of torch: they stand in for them where there is no card."""

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from qlora_core.kernels.norm_rope_swiglu import LayerKernels


def norm(x: Tensor, weight: Tensor, epsilon: float, offset: float, casting: str, overwrites: bool) -> Tensor:
    normed = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + epsilon)
    return (normed * (weight.float() + offset)).to(x.dtype)


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    def one(x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=-1)
        c, s = (each[:, None, :, : left.shape[-1]] for each in (cos, sin))
        return torch.cat((left * c - right * s, right * c + left * s), dim=-1)

    return one(q), one(k)


def norm_rope(
    x: Tensor, weight: Tensor, epsilon: float, offset: float, casting: str, cos: Tensor, sin: Tensor
) -> Tensor:
    heads = norm(x, weight, epsilon, offset, casting, False).transpose(1, 2)
    return rotate(heads, heads, cos, sin)[0].transpose(1, 2)


KERNELS = LayerKernels(
    whose="torch",
    norm=norm,
    silu=lambda gate, up: silu(gate) * up,
    gelu_tanh=lambda gate, up: gelu(gate, approximate="tanh") * up,
    rotate=rotate,
)
