"""What a training step holds, counted tensor by tensor on fake tensors: no weights, no card, exact sizes.

Quantised products are stood in for by what bitsandbytes does on a card: a dequantized weight in 4 bits, 16-bit and
32-bit copies in 8. The allocator with growing segments is imitated, so that its gaps can be counted too.
"""

import weakref
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from qlora_core.backends.packed_loss import PackedLoss, causal_lm
from qlora_core.backends.peft.backend import add_adapters
from qlora_core.kernels.cross_entropy import Head
from qlora_core.kernels.dequantize import Dequantize, dequantized_weight
from qlora_core.kernels.fused_lora import fuse_adapters
from qlora_core.kernels.keyed_dropout import key_dropout
from qlora_core.memory.checkpointed_layers import recompute_layers
from qlora_core.model.packing import Packed
from qlora_profiles.settings import Recipe
from qlora_profiles.units import MIB
from support.fake_layers import fuse_fakes

FAKE_VARLEN, FAKE_EXPANDING = "fake_varlen", "fake_varlen_all_heads"
CHUNK_TOKENS = 64
UNIT = 512
"""The allocator's smallest unit, in bytes."""


class Counted(NamedTuple):
    """Bytes of a step: most that passed beyond what was there before, and most that the allocator held in all."""

    passing: int
    reserved: int


class Segment:
    """One growing segment: best fit among its holes, the end last; it grows by whole pages."""

    def __init__(self, page_bytes: int) -> None:
        self.page_bytes = page_bytes
        self.mapped_bytes = 0
        self._holes: dict[int, int] = {}
        self._ends: dict[int, int] = {}
        self._by_size: list[tuple[int, int]] = []

    def take(self, size: int) -> int:
        """The start of a block."""
        hole = self._best(size)
        if hole is None:
            hole = self._grow(size)
        length = self._remove(hole)
        if length > size:
            self.give(hole + size, length - size)
        return hole

    def give(self, start: int, size: int) -> None:
        """Give a block back; neighbouring holes become one."""
        before = self._ends.get(start)
        if before is not None:
            size += self._remove(before)
            start = before
        if start + size in self._holes:
            size += self._remove(start + size)
        self._holes[start] = size
        self._ends[start + size] = start
        insort(self._by_size, (size, start))

    def _best(self, size: int) -> int | None:
        fitting = self._by_size[bisect_left(self._by_size, (size, -1)) :]
        inside = [start for length, start in fitting if start + length < self.mapped_bytes]
        return next(iter([*inside, *(start for _, start in fitting)]), None)

    def _grow(self, size: int) -> int:
        tail = self._ends.get(self.mapped_bytes)
        missing = size - (self._holes[tail] if tail is not None else 0)
        grown = -(-missing // self.page_bytes) * self.page_bytes
        self.mapped_bytes += grown
        self.give(self.mapped_bytes - grown, grown)
        return self._ends[self.mapped_bytes]

    def _remove(self, start: int) -> int:
        size = self._holes.pop(start)
        del self._ends[start + size]
        self._by_size.pop(bisect_left(self._by_size, (size, start)))
        return size


class LiveBytes(TorchDispatchMode):
    """Counts the storages that are alive, the most at any time, and the pages that they lie in.

    Plain bytes are main memory, which offloaded tensors wait in: those do not count.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now_bytes = self.peak_bytes = 0
        self.segments = {"small": Segment(2 * MIB), "large": Segment(20 * MIB)}
        self._seen: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.logsumexp.default:  # the exponentials, which it makes inside
            self._freed(*self.allocate(args[0].untyped_storage().nbytes()))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor) and tensor.dtype == torch.uint8:
                self._seen[tensor.untyped_storage()] = 1
            elif isinstance(tensor, Tensor):
                self.track(tensor.untyped_storage())
        return out

    def track(self, storage: Any) -> None:
        """Count a storage once, until it is freed."""
        if storage not in self._seen and storage.nbytes():
            self._seen[storage] = 1
            weakref.finalize(storage, self._freed, *self.allocate(storage.nbytes()))

    def allocate(self, size: int) -> tuple[str, int, int]:
        """(Which segment, start, rounded size) of a new block."""
        size = -(-size // UNIT) * UNIT
        name = "small" if size <= MIB else "large"
        start = self.segments[name].take(size)
        self.now_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.now_bytes)
        return name, start, size

    def _freed(self, name: str, start: int, size: int) -> None:
        self.segments[name].give(start, size)
        self.now_bytes -= size

    @property
    def reserved_bytes(self) -> int:
        """What the allocator took from the device."""
        return sum(segment.mapped_bytes for segment in self.segments.values())


class _Varlen(torch.autograd.Function):
    """Keeps what the packed kernel keeps: queries, keys, values, the result and one number a head."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, torch.empty(q.shape[:2], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, ...]:
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _fake_varlen(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else query.dtype
    q, k, v = (t[0].transpose(0, 1).to(dtype).contiguous() for t in (query, key, value))
    return _Varlen.apply(q, k, v)[None], None  # type: ignore[no-untyped-call]


def _fake_expanding(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    groups = query.shape[1] // key.shape[1]
    k, v = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    return _fake_varlen(module, query, k, v, mask)


class _Product4Bit(torch.autograd.Function):
    """Expands the whole weight, with its float32 scales, in forward and in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.shape = shape
        return torch.nn.functional.linear(x, _dequantized(shape))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return torch.matmul(grad_outputs[0], _dequantized(ctx.shape)), None


def _dequantized(shape: tuple[int, int]) -> Tensor:
    scales = torch.empty(shape[0] * shape[1] // 64, dtype=torch.float32) + 1
    weight = torch.empty(shape, dtype=torch.bfloat16)
    del scales
    return weight


class _Product8Bit(torch.autograd.Function):
    """Quantises what it reads, looking for outliers (there are none), and holds none of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.dtype, ctx.shape = x.dtype, shape
        quantised = _Product8Bit._quantised(x.to(torch.float16))
        product = torch.empty(*x.shape[:-1], shape[0], dtype=torch.int32)
        out = torch.empty_like(product, dtype=torch.float16).to(x.dtype)
        del quantised
        return out

    @staticmethod
    def _quantised(half: Tensor) -> Tensor:
        outliers = half.abs() >= 6.0
        quantised = torch.empty_like(half, dtype=torch.int8)
        del outliers
        return quantised

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        weight = torch.empty(ctx.shape, dtype=ctx.dtype)
        return torch.matmul(grad_outputs[0], weight), None


PRODUCTS: dict[str, Any] = {"qlora-4": _Product4Bit, "qlora-8": _Product8Bit}


def _quantise(model: nn.Module, method: str, fused: bool) -> None:
    """Let the adapted layers' bases compute as quantised ones do; PEFT's own code clones what a 4-bit one makes."""
    for module in model.modules():
        base = getattr(module, "base_layer", None)
        if isinstance(base, nn.Linear):
            shape = (base.out_features, base.in_features)
            base.forward = _stand_in(PRODUCTS[method], shape, method == "qlora-4" and not fused)  # type: ignore[method-assign, assignment]


def _stand_in(product: Any, shape: tuple[int, int], cloned: bool) -> Callable[[Tensor], Tensor]:
    return lambda x: product.apply(x, shape).clone() if cloned else product.apply(x, shape)


def step_bytes(
    shape: dict[str, Any],
    *,
    tokens: int,
    recomputed: int,
    method: str = "lora",
    dtype: torch.dtype = torch.bfloat16,
    attention: str = FAKE_VARLEN,
    dropout: float = 0.0,
    fused: bool = False,
    fused_layers: bool = False,
    rematerialize: bool = False,
    offload: bool = False,
    steps: int = 1,
    mlp_widths: Sequence[int] = (),
) -> Counted:
    """The peak of single micro-batches (all tokens supervised), each a step of its own, beyond weights and adapters.

    With ``mlp_widths`` layers have MLPs of these widths in place of the shape's.
    Between steps the gradients go; what the allocator took stays with it.
    """
    model = _fake_model(shape, method, dtype, attention, dropout, fused, mlp_widths)
    with _as_fakes(model):
        inner = causal_lm(model)
        inner.train()
        recompute_layers(inner, recomputed, preserve_rng_state=False, offload=offload)
        if fused:
            fuse_adapters(model, inner.get_decoder(), dtype, _dequantize(method))
        if fused_layers:
            fuse_fakes(inner, dtype).rematerialize = rematerialize
        # without, the first layer would keep less than the others: the closed form has them all alike
        inner.get_input_embeddings().register_forward_hook(lambda m, args, out: out.requires_grad_())
        loss = _loss(model, inner, dtype)
        live = LiveBytes()
        for parameter in model.parameters():
            live.track(parameter.untyped_storage())
        held = live.now_bytes
        with live:
            for _ in range(steps):
                loss(_packed(tokens)).backward()
                for parameter in model.parameters():
                    parameter.grad = None
    return Counted(live.peak_bytes - held, live.reserved_bytes)


def _loss(model: Any, inner: Any, dtype: torch.dtype) -> PackedLoss:
    autocast = None if dtype == torch.float32 else dtype
    head = Head(module=inner.get_output_embeddings())
    return PackedLoss(
        model=model,
        head=head,
        attention="sdpa",
        kernel="chunked",
        chunk_tokens=CHUNK_TOKENS,
        autocast_dtype=autocast,
    )


def _packed(tokens: int) -> Packed:
    """One example; only sizes matter."""
    ids = torch.zeros(1, tokens, dtype=torch.long)
    ends = torch.zeros(2, dtype=torch.int32)
    supervised = torch.zeros(tokens, dtype=torch.long)
    return Packed(
        input_ids=ids, position_ids=ids, boundaries=ends, longest=tokens, supervised_at=supervised, targets=supervised
    )


def _fake_model(
    shape: dict[str, Any],
    method: str,
    dtype: torch.dtype,
    attention: str,
    dropout: float,
    fused: bool,
    mlp_widths: Sequence[int],
) -> Any:
    from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM

    for name, function in ((FAKE_VARLEN, _fake_varlen), (FAKE_EXPANDING, _fake_expanding)):
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, lambda *args, **kwargs: None)
    config = AutoConfig.for_model(**shape, use_cache=False)
    weights = torch.float32 if method == "full" else dtype
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=weights, attn_implementation=attention)
        for layer, width in zip(model.get_decoder().layers if mlp_widths else (), mlp_widths, strict=True):
            layer.mlp = type(layer.mlp)(AutoConfig.for_model(**shape | {"intermediate_size": width})).to(weights)
        if method == "full":
            return model
        model = add_adapters(model, Recipe(model="", method="lora", max_length=1, lora_dropout=dropout))
    if dropout:
        key_dropout(model, 0, torch.device("cpu"), print).rows = torch.zeros(4096, 1, dtype=torch.int32)
    if method in PRODUCTS:
        _quantise(model, method, fused)
    return model


def _dequantize(method: str) -> Dequantize:
    """Fused adapters dequantize a 4-bit layer's weight by themselves in backward."""
    return (
        (lambda base: _dequantized((base.out_features, base.in_features)))
        if method == "qlora-4"
        else dequantized_weight
    )


@contextmanager
def _as_fakes(model: nn.Module) -> Iterator[None]:
    """Fake tensors in place of the model's parameters and buffers; tied ones stay one."""
    fakes: dict[int, Any] = {}

    def fake(tensor: Tensor) -> Any:
        if id(tensor) not in fakes:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype)
            is_parameter = isinstance(tensor, nn.Parameter)
            fakes[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
        return fakes[id(tensor)]

    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for store in (module._parameters, module._buffers):
                store.update({name: fake(tensor) for name, tensor in store.items() if tensor is not None})
        yield
