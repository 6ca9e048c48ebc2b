"""LoRA beside frozen linear layers with few kernels: the same sums as PEFT's, in fewer and larger pieces.

PEFT adds ``scale * B(A(x))`` to what the base makes in one kernel per word of that sentence, and autograd then adds
up the gradients of x from each. Here the adapter is added inside the matrix products (``addmm``), layers that read
the same x share one product with all their A, and backward writes one gradient of x.

Shape legend: T tokens, I and O width of a layer's input and output, r rank, R sum of the ranks of a group.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of one parent that read the same tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One adapted layer: PEFT's module, its own forward, and the float32 values that are trained."""

    module: Any
    plain: Callable[..., Tensor]
    adapter: str

    @property
    def base(self) -> Any:
        """The frozen layer."""
        return self.module.base_layer

    @property
    def a(self) -> Tensor:
        """r x I."""
        return self.module.lora_A[self.adapter].weight  # type: ignore[no-any-return]

    @property
    def b(self) -> Tensor:
        """O x r."""
        return self.module.lora_B[self.adapter].weight  # type: ignore[no-any-return]

    @property
    def scale(self) -> float:
        """What the adapter's result is multiplied with."""
        return float(self.module.scaling[self.adapter])

    @property
    def in_use(self) -> bool:
        """False while PEFT merged the adapter, switched it off or took another one."""
        module = self.module
        return not module.disable_adapters and not module.merged and module.active_adapters == [self.adapter]

    def weight(self) -> Tensor:
        """The frozen weight, O x I, expanded where it is quantised."""
        state = getattr(self.base.weight, "quant_state", None)
        if state is None:
            return self.base.weight  # type: ignore[no-any-return]
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(self.base.weight.view(-1, 1), state)  # type: ignore[no-any-return]


class Group:
    """Adapted layers that read the same tensor, computed together when the first of them is called.

    Keeps copies of the adapters in the arithmetic's format: all A below each other (R x I), times their scale, so
    that neither direction needs to multiply by it again.
    """

    def __init__(self, members: list[Member], dtype: torch.dtype) -> None:
        self.members = members
        self.dtype = dtype
        ranks = [member.a.shape[0] for member in members]
        ends = [sum(ranks[: i + 1]) for i in range(len(ranks))]
        self.columns = [slice(end - rank, end) for end, rank in zip(ends, ranks, strict=True)]
        self.a = torch.empty(0)
        self.b: list[Tensor] = []
        self._waiting: dict[int, Tensor] = {}
        self._read: Tensor | None = None

    def masters(self) -> list[Tensor]:
        """The trained values, each layer's A and B in turn."""
        return [value for member in self.members for value in (member.a, member.b)]

    def copies(self) -> list[Tensor]:
        """Where ``masters`` are copied to, in their order."""
        if not self.b:
            first = self.members[0].a
            self.a = torch.empty(self.columns[-1].stop, first.shape[1], dtype=self.dtype, device=first.device)
            self.b = [torch.empty_like(member.b, dtype=self.dtype) for member in self.members]
        return [copy for i, rows in enumerate(self.columns) for copy in (self.a[rows], self.b[i])]

    def scaled(self) -> Iterator[tuple[Tensor, float]]:
        """Copies of A that have a scale to be multiplied with."""
        for member, rows in zip(self.members, self.columns, strict=True):
            if member.scale != 1.0:
                yield self.a[rows], member.scale

    def forget(self) -> None:
        """Drop results that nobody asked for."""
        self._waiting.clear()
        self._read = None

    def forward(self, index: int, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What layer ``index`` makes of x (any leading dimensions, then I).

        Without a gradient to come, or where PEFT is asked for more than the sum, PEFT's own forward answers.
        """
        member = self.members[index]
        if args or kwargs or not torch.is_grad_enabled() or x.dtype != self.dtype or not x.numel():
            return member.plain(x, *args, **kwargs)
        if not all(each.in_use for each in self.members):
            return member.plain(x)
        if self._read is not x or index not in self._waiting:
            if not self.b:
                refresh([self])
            results = _AdaptedLinears.apply(x, self, *self.masters())  # type: ignore[no-untyped-call]
            self._read, self._waiting = x, dict(enumerate(results))
        result = self._waiting.pop(index)
        if not self._waiting:
            self._read = None
        return result


@torch.no_grad()
def refresh(groups: Iterable[Group]) -> None:
    """Copy the trained values, which the optimizer moved, in a few launches for all of them."""
    groups = list(groups)
    copies = [copy for group in groups for copy in group.copies()]
    torch._foreach_copy_(copies, [master for group in groups for master in group.masters()])
    scaled = [pair for group in groups for pair in group.scaled()]
    if scaled:
        torch._foreach_mul_([copy for copy, _ in scaled], [scale for _, scale in scaled])


class _AdaptedLinears(torch.autograd.Function):
    """All layers of a group; keeps x, shared by them and by whoever made it, and R numbers a token."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, *masters: Tensor) -> tuple[Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1])
        down = flat @ group.a.t()
        results = []
        for member, columns, b in zip(group.members, group.columns, group.b, strict=True):
            out = member.base(x)
            out.view(-1, out.shape[-1]).addmm_(down[:, columns], b.t())
            results.append(out)
        ctx.group = group
        ctx.save_for_backward(x, down)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        x, down = ctx.saved_tensors
        group: Group = ctx.group
        grads = [grad.reshape(-1, grad.shape[-1]) for grad in grad_outputs]
        grad_down = torch.empty_like(down)
        for grad, columns, b in zip(grads, group.columns, group.b, strict=True):
            torch.mm(grad, b, out=grad_down[:, columns])
        grad_x = _input_gradient(group, grads, grad_down).view_as(x) if ctx.needs_input_grad[0] else None
        return (grad_x, None, *_adapter_gradients(group, x.reshape(-1, x.shape[-1]), down, grads, grad_down))


def _input_gradient(group: Group, grads: list[Tensor], grad_down: Tensor) -> Tensor:
    """T x I, added up in place; one expanded weight lives at a time."""
    total = torch.mm(grads[0], group.members[0].weight().to(group.dtype))
    for member, grad in zip(group.members[1:], grads[1:], strict=True):
        total.addmm_(grad, member.weight().to(group.dtype))
    return total.addmm_(grad_down, group.a)


def _adapter_gradients(group: Group, x: Tensor, down: Tensor, grads: list[Tensor], grad_down: Tensor) -> list[Tensor]:
    """Of each layer's A and B in turn; one product serves all A of the group."""
    of_all_a = _float32_product(grad_down.t(), x)
    gradients = []
    for member, columns, grad in zip(group.members, group.columns, grads, strict=True):
        of_a = of_all_a[columns]
        if member.scale != 1.0:
            of_a.mul_(member.scale)
        gradients += [of_a, _float32_product(grad.t(), down[:, columns])]
    return gradients


def _float32_product(left: Tensor, right: Tensor) -> Tensor:
    """A product in float32 of factors in the arithmetic's format, in one kernel where the device has it."""
    if left.is_cuda and left.dtype != torch.float32 and torch.version.hip is None:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left, right).float()


class FusedAdapters:
    """The groups of a model whose forward is replaced; ``remove`` gives PEFT's own back.

    Parameters, their names and what is saved stay as they are.
    """

    def __init__(self, groups: list[Group], decoder: nn.Module) -> None:
        self.groups = groups
        self._hook = decoder.register_forward_pre_hook(self._before)
        for group in groups:
            for index, member in enumerate(group.members):
                member.module.forward = _bound(group, index)

    @property
    def num_layers(self) -> int:
        """Adapted layers that are computed here."""
        return sum(len(group.members) for group in self.groups)

    def remove(self) -> None:
        """Undo everything."""
        self._hook.remove()
        for group in self.groups:
            group.forget()
            for member in group.members:
                vars(member.module).pop("forward", None)

    def _before(self, module: nn.Module, args: Any) -> None:
        """The optimizer may have moved the adapters, and memory may have run out in the middle of a layer."""
        for group in self.groups:
            group.forget()
        if torch.is_grad_enabled():
            refresh(self.groups)


def _bound(group: Group, index: int) -> Callable[..., Tensor]:
    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return group.forward(index, x, *args, **kwargs)

    return forward


def fuse_adapters(model: Any, decoder: nn.Module, dtype: torch.dtype) -> FusedAdapters:
    """Compute every adapter that is nothing but a sum here, and leave the others to PEFT.

    ``decoder`` is the module that each step calls first, ``dtype`` the format that layers are given their input in.
    """
    groups: list[Group] = []
    for parent in model.modules():
        found = {name: member for name, child in parent.named_children() if (member := _member(child, dtype))}
        for names in _together(found):
            groups.append(Group([found[name] for name in names], dtype))
    return FusedAdapters(groups, decoder)


def _together(found: dict[str, Member]) -> Iterator[list[str]]:
    """The names of a parent's layers, those that read the same tensor together."""
    left = dict(found)
    for names in GROUPS:
        if all(name in left for name in names):
            yield list(names)
            left = {name: member for name, member in left.items() if name not in names}
    yield from ([name] for name in left)


def _member(module: nn.Module, dtype: torch.dtype) -> Member | None:
    """An adapted layer that is the base plus ``scale * B(A(x))``, else ``None``."""
    from peft.tuners.lora import LoraLayer

    if not isinstance(module, LoraLayer) or len(module.active_adapters) != 1 or "forward" in vars(module):
        return None
    adapter = module.active_adapters[0]
    if list(module.lora_A) != [adapter] or not _plain_sum(module, adapter) or not _frozen(module.base_layer, dtype):
        return None
    return Member(module=module, plain=module.forward, adapter=adapter)


def _plain_sum(module: Any, adapter: str) -> bool:
    """No dropout, no DoRA or other variant, no trained bias, nothing transposed."""
    drops = module.lora_dropout[adapter]
    return (
        isinstance(drops, nn.Identity)
        and adapter not in module.lora_variant
        and not module.lora_bias[adapter]
        and not getattr(module, "fan_in_fan_out", False)
    )


def _frozen(base: Any, dtype: torch.dtype) -> bool:
    """A linear layer that is not trained: bitsandbytes' 4-bit one, or torch's in the arithmetic's format."""
    if any(parameter.requires_grad for parameter in base.parameters()):
        return False
    if type(base) is nn.Linear:
        return base.weight.dtype == dtype
    return type(base).__name__ == "Linear4bit" and getattr(base.weight, "quant_state", None) is not None
