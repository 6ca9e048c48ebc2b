"""The values of weights, looked at as they are read: damaged ones make a model that computes no number."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from qlora_core.model.parts import family_of
from qlora_profiles.errors import UserError
from qlora_profiles.weight_names import AGAIN, SHOWN, counted, is_beside_text

ANY_LAYER = re.compile(r"^(?P<layer>(?:.*\.)?(?:layers|blocks|block|h)\.(?P<index>\d+))\.")


def lets_nothing_through(name: str, model: Any) -> bool:
    """Whether a weight of zeros is that of a norm which makes zeros of everything; in some families 0 stands for 1."""
    import torch

    with suppress(Exception), torch.no_grad():  # no module of this name, or one that takes more than one input
        module = model.get_submodule(name.removesuffix(".weight"))
        weight = module.weight
        passed = torch.linspace(1, 2, weight.numel(), device=weight.device).to(weight.dtype)
        return "Norm" in type(module).__name__ and not bool(module(passed[None]).any())
    return False


class WatchedWeights:
    """The least and the largest value of every tensor that was read, by its name in the files."""

    def __init__(self) -> None:
        self.ranges: dict[str, tuple[float, float]] = {}
        self._matrices: set[str] = set()

    def look(self, name: str, tensor: Any) -> None:
        """Note the range of a tensor; NaN is both its ends. One pass at the memory's speed, without a copy."""
        import torch

        if tensor.dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64) and tensor.numel():
            low, high = map(float, torch.aminmax(tensor.detach()))
            if tensor.numel() == 1 and math.isinf(high):
                return  # no weight but a bound that nothing reaches: some sizes of Gemma 4 clip by such ones
            self.ranges[name] = low, high
            if tensor.dim() > 1:
                self._matrices.add(name)

    def check(self, source: str, model: Any, dtype: Any) -> list[str]:
        """Refuse weights that are no numbers, or none in ``dtype``, and whole layers of zeros.

        Returns the other matrices that hold nothing but zeros.

        Raises:
            UserError: names up to three of them.
        """
        if not self.ranges:  # they were read in a way that nobody could watch
            for name, parameter in model.named_parameters():
                self.look(name, parameter)
        self._check_numbers(source)
        self._check_fits(source, dtype)
        return self._check_zeros(source, model)

    def broken(self) -> list[str]:
        """The names of what holds NaN or infinite values."""
        return sorted(name for name, ends in self.ranges.items() if not all(map(math.isfinite, ends)))

    def _check_numbers(self, source: str) -> None:
        broken = self.broken()
        if broken:
            what = "NaN" if any(map(math.isnan, self.ranges[broken[0]])) else "infinite values"
            raise UserError(f"{source}: the base itself is damaged: {what} in {counted(broken)}", AGAIN)

    def _check_fits(self, source: str, dtype: Any) -> None:
        import torch

        if not isinstance(dtype, torch.dtype):
            return
        most = torch.finfo(dtype).max
        largest = {name: max(map(abs, ends)) for name, ends in self.ranges.items()}
        beyond = sorted(name for name, value in largest.items() if value > most)
        if beyond:
            said = f"values up to {largest[beyond[0]]:.3g} in {counted(beyond)}, and {dtype} ends at {most:.3g}"
            raise UserError(f"{source}: {said}", "--compute-dtype bfloat16, or float32")

    def _check_zeros(self, source: str, model: Any) -> list[str]:
        """Refuse an embedding, a layer or a last norm of nothing but zeros; returns what else is and should not be."""
        family = family_of(model)
        tables = tuple(f".{name}.weight" for name in (*family.embedding, *family.head))
        layers: dict[str, list[str]] = defaultdict(list)
        for name in (each for each in self._matrices if not is_beside_text(each, family)):
            found = ANY_LAYER.match(name)
            if found or f".{name}".endswith(tables):
                layers[found["layer"] if found else name].append(name)
        zero = {name for names in layers.values() for name in names if self.ranges[name] == (0.0, 0.0)}
        norms = [name for name, ends in self.ranges.items() if ends == (0.0, 0.0) and lets_nothing_through(name, model)]
        empty = sorted(layer for layer, names in layers.items() if zero.issuperset(names))
        empty += [name for name in norms if not ANY_LAYER.match(name)]
        if empty:
            shown = ", ".join(empty[:SHOWN])
            raise UserError(f"{source}: the base itself is damaged: nothing but zeros in {shown}", AGAIN)
        return sorted([*(name for name in zero if not name.endswith("bias")), *norms])


@contextmanager
def watched_weights() -> Iterator[WatchedWeights]:
    """See every tensor that transformers reads from a safetensors file while this lasts, before it is quantised.

    Quantising on a card may make a number of NaN, so that looking at what was loaded would be too late.
    """
    from transformers import modeling_utils

    watched, opened = WatchedWeights(), getattr(modeling_utils, "safe_open", None)
    if opened is None:
        yield watched
        return
    modeling_utils.safe_open = lambda *args, **kwargs: _File(opened(*args, **kwargs), watched)  # type: ignore
    try:
        yield watched
    finally:
        modeling_utils.safe_open = opened  # type: ignore[attr-defined]


class _File:
    """An open safetensors file whose slices are looked at as they are read."""

    def __init__(self, file: Any, watched: WatchedWeights) -> None:
        self._file, self._watched = file, watched

    def get_slice(self, name: str) -> "_Slice":
        return _Slice(name, self._file.get_slice(name), self._watched)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_File":
        self._file.__enter__()
        return self

    def __exit__(self, *error: object) -> Any:
        return self._file.__exit__(*error)


class _Slice:
    def __init__(self, name: str, held: Any, watched: WatchedWeights) -> None:
        self._name, self._held, self._watched = name, held, watched

    def __getitem__(self, part: Any) -> Any:
        tensor = self._held[part]
        self._watched.look(self._name, tensor)
        return tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._held, name)
