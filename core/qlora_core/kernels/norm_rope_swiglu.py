"""Norms, rotary positions and gated activations of a decoder in single kernels, one model at a time.

transformers writes them in words of torch: eight kernels for a norm, ten for a rotation. Here the modules of one
loaded model get another forward; no class and no module of transformers changes. A kernel is used only where it
gives, on random numbers, what the model's own code gives; ours first, then Liger's.

Shape legend: T tokens, H hidden size, I width of the MLP.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qlora_core.kernels.layer_functions import LayerFunctions, Norm
from qlora_core.kernels.trial import agree, random_inputs
from qlora_core.memory.rematerialize import rematerializable
from qlora_core.model.parts import family_of, text_decoder
from qlora_core.session.fallback import Warn, failure
from qlora_profiles.architectures import IN_FLOAT32, NormStyle

TRIAL_TOKENS, ROTATED = 32, 64
OWN_CODE = "the model's own code"
NEXT = f"the next kernel or {OWN_CODE}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKernels:
    """The kernels: a norm of (x, weight, epsilon, offset, casting mode, whether backward may overwrite its input),
    activations of (gate, up), a rotation of (q, k, cos, sin), and where there is one a norm of heads that are turned at
    once, of (B x T x heads x H, weight, epsilon, offset, casting mode, cos, sin)."""

    whose: str
    norm: Callable[[Tensor, Tensor, float, float, str, bool], Tensor]
    silu: Callable[[Tensor, Tensor], Tensor]
    gelu_tanh: Callable[[Tensor, Tensor], Tensor]
    rotate: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    norm_rope: Callable[[Tensor, Tensor, float, float, str, Tensor, Tensor], Tensor] | None = None


def layer_kernels() -> tuple[LayerKernels, ...]:
    """All there are, the quickest first; they need Triton. Raises: ImportError."""
    liger = liger_kernels()
    return own_kernels(liger), liger


def own_kernels(others: LayerKernels) -> LayerKernels:
    """Ours, and others' in place of what we have not. Raises: ImportError."""
    own = LayerFunctions()

    def norm(x: Tensor, weight: Tensor, epsilon: float, offset: float, casting: str, overwrites: bool) -> Tensor:
        if weight.requires_grad:
            return others.norm(x, weight, epsilon, offset, casting, overwrites)
        return own.norm(x, weight, Norm(epsilon, offset, casting == IN_FLOAT32), overwrites)

    def norm_rope(
        x: Tensor, weight: Tensor, epsilon: float, offset: float, casting: str, cos: Tensor, sin: Tensor
    ) -> Tensor:
        return own.norm_rope(x, weight, Norm(epsilon, offset, casting == IN_FLOAT32), cos, sin)

    return replace(others, whose="ours", norm=norm, silu=own.silu, norm_rope=norm_rope)


def liger_kernels() -> LayerKernels:
    """Liger's. Raises: ImportError."""
    from liger_kernel.ops import LigerGELUMulFunction, LigerRMSNormFunction, LigerRopeFunction, LigerSiLUMulFunction

    return LayerKernels(
        whose="Liger's",
        norm=lambda *arguments: LigerRMSNormFunction.apply(*arguments),
        silu=lambda gate, up: LigerSiLUMulFunction.apply(gate, up),
        gelu_tanh=lambda gate, up: LigerGELUMulFunction.apply(gate, up),
        rotate=lambda *arguments: LigerRopeFunction.apply(*arguments),
    )


class FusedLayers:
    """The modules whose forward is replaced, by kind; ``remove`` gives their own back.

    While ``rematerialize`` is set, norms and activations tell fused adapters how to make their results again.
    """

    def __init__(self) -> None:
        self.replaced: dict[str, list[nn.Module]] = {"norm": [], "activation": [], "rotation": []}
        self.rematerialize = False

    def rematerializable(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """A function whose results can be made again."""
        return rematerializable(function, lambda: self.rematerialize)

    def replace(self, kind: str, module: nn.Module, forward: Callable[..., Any]) -> None:
        """Let a module compute by ``forward``."""
        module.forward = forward
        self.replaced[kind].append(module)

    def remove(self) -> None:
        """Undo everything."""
        for modules in self.replaced.values():
            for module in modules:
                vars(module).pop("forward", None)
            modules.clear()


def fuse_layers(
    model: Any,
    choices: Sequence[LayerKernels],
    dtype: torch.dtype,
    warn: Warn = lambda message: None,
) -> FusedLayers:
    """Replace what kernels compute in ``dtype`` as the model itself does: by the first of ``choices`` that do.

    ``warn`` is told of what does not.
    """
    fused = FusedLayers()
    family = family_of(model)
    style = family.norm_style if family.layer_kernels else None
    if style is None:
        warn(failure("layers", "not for this architecture", OWN_CODE))
        return fused
    device = model.get_input_embeddings().weight.device
    trial = _Trial(device, dtype, warn)
    for module in text_decoder(model).modules():
        if "forward" in vars(module):
            continue
        offers = (offer for each in choices for offer in _offers(module, each, style, trial, fused.rematerializable))
        for part in next((offer.parts for offer in offers if offer.same()), ()):
            fused.replace(*part)
    return fused


class Offer(NamedTuple):
    """What could take the place of modules' forward, each with its kind, and a test of it."""

    parts: tuple[tuple[str, nn.Module, Callable[..., Any]], ...]
    same: Callable[[], bool]


Made = Callable[[Callable[..., Tensor]], Callable[..., Tensor]]


def _offers(module: Any, kernels: LayerKernels, style: NormStyle, trial: "_Trial", made: Made) -> Iterator[Offer]:
    """What could take a module's place, the best first."""
    name = type(module).__name__
    if name.endswith("RMSNorm") and isinstance(module.weight, Tensor):
        norm = made(_norm(module, kernels, style))
        width = module.weight.shape[0]
        title = f"{name} {width} ({kernels.whose})"
        yield Offer((("norm", module, norm),), lambda: trial.agree(title, module.forward, norm, [width]))
    elif all(hasattr(module, part) for part in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        activate = _activation(module.act_fn, kernels)
        if activate is not None:
            forward = _gated(module, made(activate))
            own = _multiplied(module.act_fn)
            title = f"the activation of {name} ({kernels.whose})"
            yield Offer((("activation", module, forward),), lambda: trial.agree(title, own, activate, [64, 64]))
    elif hasattr(module, "q_proj") and (rotate := _rotation_of(module)):
        frozen = hasattr(module, "q_norm") and not module.q_norm.weight.requires_grad
        if kernels.norm_rope is not None and frozen:
            yield _heads_offer(module, kernels, style, trial, rotate)
        forward, title = _rotating(module, kernels.rotate), f"the rotation of {name}"
        parts = (("rotation", module, forward),)
        yield Offer(parts, lambda: trial.agree_on_rotation(title, rotate, kernels.rotate, ROTATED))


def _epsilon(norm: Any) -> float:
    return float(getattr(norm, "variance_epsilon", None) or norm.eps)


def _norm(module: Any, kernels: LayerKernels, style: NormStyle) -> Callable[[Tensor], Tensor]:
    epsilon = _epsilon(module)

    def forward(x: Tensor) -> Tensor:
        return kernels.norm(x, module.weight, epsilon, style.offset, style.casting, style.overwrites)

    return forward


def _activation(act: nn.Module, kernels: LayerKernels) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The kernel of an activation, by transformers' and torch's names."""
    return {"SiLU": kernels.silu, "SiLUActivation": kernels.silu, "GELUTanh": kernels.gelu_tanh}.get(type(act).__name__)


def _multiplied(act: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda gate, up: act(gate) * up


def _gated(module: Any, activate: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        down: Tensor = module.down_proj(activate(module.gate_proj(x), module.up_proj(x)))
        return down

    return forward


def _heads_offer(
    module: Any, kernels: LayerKernels, style: NormStyle, trial: "_Trial", rotate: Callable[..., Any]
) -> Offer:
    """Norm and rotation of heads at once, in the rotation's place; in the norms' nothing is left to do."""
    norms = module.q_norm, module.k_norm
    norm_rope: Any = kernels.norm_rope

    def turn(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        how = [(norm.weight, _epsilon(norm), style.offset, style.casting, cos, sin) for norm in norms]
        return tuple(norm_rope(x.transpose(1, 2), *rest).transpose(1, 2) for x, rest in zip((q, k), how, strict=True))

    def own(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
        return rotate(norms[0](q), norms[1](k), cos, sin)

    width = norms[0].weight.shape[0]
    title = f"the heads of {type(module).__name__} {width} ({kernels.whose})"
    parts = (("rotation", module, _rotating(module, turn)), *(("norm", norm, _as_it_is) for norm in norms))
    return Offer(parts, lambda: trial.agree_on_rotation(title, own, turn, width))


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _rotation_of(module: nn.Module) -> Callable[..., Any] | None:
    """What an attention's own forward calls, where another can be put in its place."""
    own = type(module).forward
    if not isinstance(own, FunctionType) or hasattr(own, "__wrapped__"):
        return None
    called = "apply_rotary_pos_emb" in own.__code__.co_names
    return own.__globals__.get("apply_rotary_pos_emb") if called else None


def _rotating(module: nn.Module, rotate: Callable[..., Any]) -> Callable[..., Any]:
    """The attention's own forward with another rotation."""
    own: Any = type(module).forward
    names = own.__globals__ | {"apply_rotary_pos_emb": rotate}
    copy = FunctionType(own.__code__, names, own.__name__, own.__defaults__, own.__closure__)
    copy.__kwdefaults__ = own.__kwdefaults__
    forward: Callable[..., Any] = copy.__get__(module)
    return forward


class _Trial:
    """Compares kernels with the model's own code, each pair once."""

    def __init__(self, device: torch.device, dtype: torch.dtype, warn: Warn) -> None:
        self._device, self._dtype, self._warn = device, dtype, warn
        self._seen: dict[str, bool] = {}

    def agree(self, name: str, own: Callable[..., Any], other: Callable[..., Any], widths: list[int]) -> bool:
        """On one random tensor of 1 x tokens x width for each width."""
        return self._same(name, own, other, [(1, TRIAL_TOKENS, width) for width in widths])

    def agree_on_rotation(self, name: str, own: Callable[..., Any], other: Callable[..., Any], width: int) -> bool:
        """On four query and two key heads, laid out in memory token by token as attention has them."""
        angles = torch.arange(TRIAL_TOKENS)[:, None] * torch.linspace(0.1, 1, width // 2).repeat(2)
        cos, sin = (each[None].to(self._device, self._dtype) for each in (angles.cos(), angles.sin()))

        def with_angles(rotate: Callable[..., Any]) -> Callable[..., Any]:
            return lambda q, k: rotate(q.transpose(1, 2), k.transpose(1, 2), cos, sin)

        shapes = [(1, TRIAL_TOKENS, heads, width) for heads in (4, 2)]
        return self._same(name, with_angles(own), with_angles(other), shapes)

    def _same(
        self, name: str, own: Callable[..., Any], other: Callable[..., Any], shapes: Sequence[tuple[int, ...]]
    ) -> bool:
        if name not in self._seen:
            inputs = random_inputs(shapes, self._device, self._dtype)
            self._seen[name] = agree(name, other, own, inputs, instead=NEXT, warn=self._warn)
        return self._seen[name]
