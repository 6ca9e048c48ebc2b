"""LoRA beside frozen linear layers with few kernels: the same sums as PEFT's, in fewer and larger pieces.

PEFT adds ``scale * B(A(x))`` to what the base makes in one kernel per word of that sentence, and autograd then adds
up the gradients of x from each. Here the adapter is added inside the matrix products (``addmm``), layers that read
the same x share one product with all their A, and backward writes one gradient of x.

Shape legend: T tokens, I and O width of a layer's input and output, r rank, R sum of the ranks of a group.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qlora_core.kernels.dequantize import Dequantize, dequantized_weight
from qlora_core.memory.activation_checkpoint import in_first_pass, in_recomputing_pass
from qlora_core.memory.checkpointed_layers import decoder_layers
from qlora_core.memory.rematerialize import Source, source_of
from qlora_core.model.parts import family_of
from qlora_profiles.architectures import Projections


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One adapted layer: PEFT's module, its own forward, and the float32 values that are trained."""

    module: Any
    base: Any
    plain: Callable[..., Tensor]
    adapter: str

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


class Copies(NamedTuple):
    """Trained values in the arithmetic's format: all A below each other (R x I), and each B (O x r)."""

    a: Tensor
    b: list[Tensor]


class Group:
    """Adapted layers that read the same tensor and have one scale, computed when the first of them is called.

    What a group ``only_added`` makes, no backward reads: it is not made a second time. ``layer`` is the decoder layer
    that the group is in, if any. While it ``stays_dequantized``, ``hold`` makes its weights once for all steps.
    """

    def __init__(
        self,
        members: list[Member],
        dtype: torch.dtype,
        dequantize: Dequantize = dequantized_weight,
        only_added: bool = False,
        layer: Any = None,
    ) -> None:
        self.members = members
        self.dtype = dtype
        self.dequantize = dequantize
        self.only_added = only_added
        self.layer = layer
        self.scale = members[0].scale
        self.ranks = [member.a.shape[0] for member in members]
        self._waiting: dict[int, Tensor] = {}
        self._read: Tensor | None = None
        self._ahead: Copies | None = None
        self.stays_dequantized = False
        self._dequantized: list[Tensor] = []
        self.look()

    def look(self) -> None:
        """Note what is trained (all A, then all B, in float32), and whether it is in use: modules answer slowly."""
        self.masters = [*(member.a for member in self.members), *(member.b for member in self.members)]
        self.in_use = all(member.in_use for member in self.members)

    @property
    def keeps(self) -> bool:
        """Whether all that is made here stays until backward: its layer does not recompute."""
        return self.in_use and not (getattr(self.layer, "gradient_checkpointing", False) and self.layer.training)

    def copies(self) -> "Copies":
        """The masters in the arithmetic's format."""
        if self._ahead is not None:
            found, self._ahead = self._ahead, None
            return found
        found, room = self._room()
        torch._foreach_copy_(room, self.masters)
        return found

    def room_ahead(self) -> list[Tensor]:
        """Room for the copies that the next call will take, in the masters' order; whoever asks fills it."""
        self._ahead, room = self._room()
        return room

    def _room(self) -> tuple["Copies", list[Tensor]]:
        of_a, of_b = self.masters[: len(self.members)], self.masters[len(self.members) :]
        a = of_a[0].new_empty(sum(self.ranks), of_a[0].shape[1], dtype=self.dtype)
        b = [torch.empty_like(each, dtype=self.dtype) for each in of_b]
        return Copies(a, b), [*self.parts(a, 0), *b]

    def parts(self, tensor: Tensor, dim: int) -> Sequence[Tensor]:
        """Each layer's share of something that has all ranks in one dimension."""
        return torch.split_with_sizes(tensor, self.ranks, dim)

    def weight(self, index: int) -> Tensor:
        """O x I in the arithmetic's format. bitsandbytes' kernels that read the 4 bits themselves are no faster."""
        return self._dequantized[index] if self._dequantized else self._made(self.members[index])

    def _made(self, member: Member) -> Tensor:
        return self.dequantize(member.base).to(self.dtype)

    def hold(self) -> None:
        """Dequantize all weights for good, where they are to stay and do not lie there yet."""
        if self.stays_dequantized and not self._dequantized:
            self._dequantized = [self._made(member) for member in self.members]

    def release(self) -> bool:
        """Free dequantized weights until ``hold`` makes them again; False where there are none."""
        held = bool(self._dequantized)
        self._dequantized = []
        return held

    def forget(self) -> None:
        """Drop results that nobody asked for."""
        self._waiting.clear()
        self._read = self._ahead = None

    def forward(self, index: int, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What layer ``index`` makes of x (any leading dimensions, then I).

        Without a gradient to come, or where PEFT is asked for more than the sum, PEFT's own forward answers.
        """
        member = self.members[index]
        learns = torch.is_grad_enabled() or in_first_pass()
        if args or kwargs or not learns or x.dtype != self.dtype or not x.numel():
            return member.plain(x, *args, **kwargs)
        if not self.in_use:
            return member.plain(x)
        if self._read is not x or index not in self._waiting:
            self._read, self._waiting = x, dict(enumerate(self._results(x)))
        result = self._waiting.pop(index)
        if not self._waiting:
            self._read = None
        return result

    def _results(self, x: Tensor) -> Sequence[Tensor]:
        if not torch.is_grad_enabled():  # the first of two passes
            return _computed(self, x)[0]
        results: tuple[Tensor, ...] = _AdaptedLinears.apply(x, self, source_of(x), *self.masters)  # type: ignore[no-untyped-call]
        return results


class _AdaptedLinears(torch.autograd.Function):
    """All layers of a group. Keeps x, shared by them and by whoever made it (or what it was made of, where that is
    known), R numbers a token, and the copies.

    The scale is in ``down``, hence in all that is made of it, and once more in its gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, source: Source | None, *masters: Tensor) -> tuple[Tensor, ...]:
        results, down, a, all_b = _computed(group, x)
        ctx.group = group
        ctx.make = source.function if source else None  # not its inputs: only saved tensors go when layers recompute
        ctx.save_for_backward(down, a, *all_b, *(source.inputs if source else (x,)))
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        group: Group = ctx.group
        down, a, *rest = ctx.saved_tensors
        all_b, kept = rest[: len(group.members)], tuple(rest[len(group.members) :])
        x = ctx.make(*kept) if ctx.make else kept[0]
        shape, flat = x.shape, x.reshape(-1, x.shape[-1])
        grads = [grad.reshape(-1, grad.shape[-1]) for grad in grad_outputs]
        grad_down = torch.empty_like(down)
        for part, grad, b in zip(group.parts(grad_down, 1), grads, all_b, strict=True):
            part.addmm_(grad, b, beta=0, alpha=group.scale)
        of_a = _float32_product(grad_down.t(), flat)
        del x, kept, flat  # what was made again makes room for x's gradient
        of_b = [_float32_product(g.t(), part) for g, part in zip(grads, group.parts(down, 1), strict=True)]
        grad_x = _input_gradient(group, grads, grad_down, a).view(shape) if ctx.needs_input_grad[0] else None
        return (grad_x, None, None, *group.parts(of_a, 0), *of_b)


def _computed(group: Group, x: Tensor) -> tuple[list[Tensor], Tensor, Tensor, list[Tensor]]:
    """What each layer of a group makes of x, x times all A (T x R), and the copies."""
    flat = x.reshape(-1, x.shape[-1])
    a, all_b = group.copies()
    down = flat.new_empty(flat.shape[0], a.shape[0]).addmm_(flat, a.t(), beta=0, alpha=group.scale)
    results = []
    skipped = group.only_added and in_recomputing_pass()
    for index, (part, b) in enumerate(zip(group.parts(down, 1), all_b, strict=True)):
        out = _nothing(flat, b) if skipped else _sum(group, index, flat, part, b)
        results.append(out.view(*x.shape[:-1], out.shape[-1]))
    return results, down, a, all_b


def _nothing(flat: Tensor, b: Tensor) -> Tensor:
    """In place of a result, T x O in the space of one number, and none that could be taken for a result."""
    return flat.new_full((), torch.nan).expand(flat.shape[0], b.shape[0])


def _sum(group: Group, index: int, flat: Tensor, down: Tensor, b: Tensor) -> Tensor:
    """T x O, the adapter's part first: the large product adds itself to it for nothing."""
    bias = group.members[index].base.bias
    out = torch.mm(down, b.t()) if bias is None else torch.addmm(bias.to(group.dtype), down, b.t())
    return out.addmm_(flat, group.weight(index).t())


def _input_gradient(group: Group, grads: list[Tensor], grad_down: Tensor, a: Tensor) -> Tensor:
    """T x I, added up in place from the small product on; one dequantized weight lives at a time."""
    total = torch.mm(grad_down, a)
    for index, grad in enumerate(grads):
        total.addmm_(grad, group.weight(index))
    return total


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
        self.keep_dequantized(())
        for group in self.groups:
            group.forget()
            for member in group.members:
                vars(member.module).pop("forward", None)

    def keep_dequantized(self, layers: Collection[Any]) -> None:
        """Let the weights of these decoder layers stay dequantized from the next step on, and those of no others."""
        wanted = {id(layer) for layer in layers}
        for group in self.groups:
            group.stays_dequantized = id(group.layer) in wanted
            if not group.stays_dequantized:
                group.release()

    def release(self) -> bool:
        """Free all dequantized weights until the next step makes them again; False where there are none."""
        held = [group.release() for group in self.groups]
        return any(held)

    def _before(self, module: nn.Module, args: Any) -> None:
        """Memory may have run out in the middle of a layer, and modules may have changed since the last step."""
        for group in self.groups:
            group.forget()
            group.look()
        if torch.is_grad_enabled():
            self._hold()
            self._copy_ahead([group for group in self.groups if group.keeps])

    @torch.no_grad()
    def _hold(self) -> None:
        for group in self.groups:
            group.hold()

    @torch.no_grad()
    def _copy_ahead(self, groups: list[Group]) -> None:
        """All copies that would be made one by one and stay: one by one they take longer than all at once."""
        room = [place for group in groups for place in group.room_ahead()]
        if room:
            torch._foreach_copy_(room, [master for group in groups for master in group.masters])


def _bound(group: Group, index: int) -> Callable[..., Tensor]:
    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return group.forward(index, x, *args, **kwargs)

    return forward


def fuse_adapters(
    model: Any, decoder: Any, dtype: torch.dtype, dequantize: Dequantize = dequantized_weight
) -> FusedAdapters:
    """Compute every adapter that is nothing but a sum here, and leave the others to PEFT.

    ``decoder`` is the module that each step calls first, ``dtype`` the format that layers are given their input in,
    ``dequantize`` what makes 4-bit weights fit for a product.
    """
    groups: list[Group] = []
    layers = {id(module): layer for layer in decoder_layers(model) for module in layer.modules()}
    family = family_of(decoder)
    added = family.projections.down if family.only_adds_mlp else ()
    for parent in model.modules():
        found = {name: member for name, child in parent.named_children() if (member := _member(child, dtype))}
        for names in _together(parent, found, family.projections):
            members = [found[name] for name in names]
            groups.append(Group(members, dtype, dequantize, names[0] in added, layers.get(id(parent))))
    return FusedAdapters(groups, decoder)


def _together(parent: nn.Module, found: dict[str, Member], projections: Projections) -> Iterator[list[str]]:
    """The names of a parent's layers; those that read the same tensor together, where all of them have adapters."""
    left = dict(found)
    for group in (projections.attention, projections.mlp):
        names = [name for name in group if hasattr(parent, name)]
        if all(name in left for name in names) and len({left[name].scale for name in names}) == 1:
            yield names
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
    return Member(module=module, base=module.base_layer, plain=module.forward, adapter=adapter)


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
