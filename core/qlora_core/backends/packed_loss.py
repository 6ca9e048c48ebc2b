"""From a packed micro-batch to its summed loss, for a model on transformers' own code."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from qlora_core.kernels.attention import sequence_arguments
from qlora_core.kernels.cross_entropy import KERNELS, Head, head_of, losses_of, usable_kernel
from qlora_core.kernels.keyed_dropout import Places
from qlora_core.kernels.trial import attempt, by_value, require_close
from qlora_core.memory.cuda_graphs import GraphedDecoder
from qlora_core.model.packing import Packed
from qlora_core.model.parts import text_decoder
from qlora_core.session.fallback import DISAGREES, Unsuited, Warn


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedLoss:
    """Summed cross entropy (nats, float32) of a packed micro-batch.

    ``head`` is ``None`` for models whose logits only their own forward can make; their loss is computed through it.
    ``full_length`` is what examples are cut at (tokens).
    ``decode`` computes the hidden states (T x H) of a micro-batch in another way than the model itself; it answers
    ``None`` where it cannot. ``places`` is told where a micro-batch stands, for dropout.
    ``release_weights`` frees what is soon made again, and says whether there was anything.
    """

    model: Any
    head: Head | None
    attention: str
    kernel: str
    chunk_tokens: int
    autocast_dtype: torch.dtype | None
    full_length: int | None = None
    decode: GraphedDecoder | None = None
    places: Places | None = None
    release_weights: Callable[[], bool] | None = None

    def __call__(self, packed: Packed) -> Tensor:
        """The sum over the micro-batch's supervised tokens."""
        if self.places is not None:
            self.places.at(packed)
        with self.autocast(packed.input_ids.device.type):
            if self.head is None:
                return cross_entropy(self._own_logits(packed), packed.targets, reduction="sum")
            hidden = self._hidden(packed).index_select(0, packed.supervised_at)
            return KERNELS[self.kernel](hidden, packed.targets, self.head, self.chunk_tokens)

    @torch.no_grad()
    def token_losses(self, packed: Packed) -> Tensor:
        """Cross entropy of each supervised token (N, float32, no gradient), for held-out rows."""
        with self.autocast(packed.input_ids.device.type):
            if self.head is None:
                return cross_entropy(self._own_logits(packed), packed.targets, reduction="none")
            hidden = self._hidden(packed).index_select(0, packed.supervised_at)
            parts = zip(hidden.split(self.chunk_tokens), packed.targets.split(self.chunk_tokens), strict=True)
            return torch.cat([losses_of(self.kernel, h, t, self.head) for h, t in parts])

    @property
    def captures(self) -> int:
        """How often ``decode`` captured a graph so far."""
        return self.decode.captures if self.decode else 0

    def release(self) -> bool:
        """Free what is held until the next step makes it again; False where that is nothing.

        Graphs go first: they read what ``release_weights`` would free.
        """
        if self.decode is not None and self.decode.release():
            return True
        return self.release_weights is not None and self.release_weights()

    def _hidden(self, packed: Packed) -> Tensor:
        hidden = self.decode(packed) if self.decode else None
        return self.hidden_states(packed) if hidden is None else hidden

    def hidden_states(self, packed: Packed) -> Tensor:
        """What the model itself makes of a micro-batch (T x H)."""
        states: Tensor = decoder_of(self.model)(**self._inputs(packed)).last_hidden_state[0]
        return states

    def _inputs(self, packed: Packed) -> dict[str, Any]:
        return model_inputs(packed, self.attention, self.full_length)

    def _own_logits(self, packed: Packed) -> Tensor:
        logits: Tensor = self.model(**self._inputs(packed), logits_to_keep=packed.supervised_at).logits[0]
        return logits.float()

    def autocast(self, device_type: str) -> AbstractContextManager[Any]:
        """Arithmetic in the compute dtype; nothing where that is float32."""
        return torch.autocast(device_type, self.autocast_dtype) if self.autocast_dtype else nullcontext()


def packed_loss(
    model: Any,
    *,
    attention: str,
    kernel: str,
    chunk_tokens: int,
    autocast_dtype: torch.dtype | None,
    full_length: int | None = None,
    places: Places | None = None,
    release_weights: Callable[[], bool] | None = None,
    warn: Warn = lambda message: None,
) -> PackedLoss:
    """Choose what computes the loss of this model, after comparing its head with its own forward.

    Falls back to a kernel that computes the same, and says so through ``warn``.
    """
    loss = PackedLoss(
        model=model,
        head=None,
        attention=attention,
        kernel=kernel,
        chunk_tokens=chunk_tokens,
        autocast_dtype=autocast_dtype,
        full_length=full_length,
        places=places,
        release_weights=release_weights,
    )
    if kernel == "logits":
        return loss
    head = attempt(
        f"the loss ({kernel})",
        lambda: _tried_head(loss),
        None,
        instead="the model's own forward",
        warn=warn,
        caught=DISAGREES,
    )
    return replace(loss, head=head, kernel=usable_kernel(kernel, head, warn)) if head is not None else loss


def decoder_of(model: Any) -> Any:
    """The stack of layers below the head, adapters included."""
    return text_decoder(model)


def causal_lm(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@torch.no_grad()
def _tried_head(loss: PackedLoss) -> Head:
    """The model's head, for which head(decoder(x)) is what the model's own forward makes of a few tokens.

    Raises:
        Unsuited: there is no head that would do.
        ArithmeticError: it makes other logits.
    """
    inner, head = causal_lm(loss.model), head_of(loss.model)
    if head is None:
        raise Unsuited("this architecture makes its logits in its own way")
    was_training = inner.training
    inner.eval()
    try:
        inputs = _probe_inputs(inner, loss.attention)
        with loss.autocast(inputs["input_ids"].device.type):
            ours = head.logits(text_decoder(inner)(**inputs).last_hidden_state[0])
            theirs = inner(**inputs).logits[0].float()
        require_close(ours, theirs, "the head alone", error=partial(by_value, floor=1.0))
        return head
    finally:
        inner.train(was_training)


def _probe_inputs(inner: Any, attention: str) -> dict[str, Any]:
    """Eight tokens of one sequence."""
    device = inner.get_input_embeddings().weight.device
    ids = torch.arange(8, device=device) % inner.config.get_text_config().vocab_size
    boundaries = torch.tensor([0, 8], dtype=torch.int32, device=device)
    positions = torch.arange(8, device=device)[None]
    packed = Packed(
        input_ids=ids[None], position_ids=positions, boundaries=boundaries, longest=8, supervised_at=ids, targets=ids
    )
    return model_inputs(packed, attention)


def model_inputs(packed: Packed, attention: str, full_length: int | None = None) -> dict[str, Any]:
    """What a transformers model is called with for a packed micro-batch."""
    inputs = {"input_ids": packed.input_ids, "position_ids": packed.position_ids, "use_cache": False}
    return inputs | sequence_arguments(attention, packed, full_length)
