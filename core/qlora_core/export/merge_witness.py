"""Whether a merged model is its base with all of its adapter: seen while it is merged, so nothing is loaded twice."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qlora_core.export.fingerprints import Logits, adapter_sums, apart, differing, logits_of, model_sums, share_kept
from qlora_core.export.read_back import TOLERANCES, Forward, SavedFolder

LEAST_KEPT = 0.5
"""Share of what the adapter does to the logits that a merged model must have; set by hand."""
SEEN = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 4e-3}
"""What an adapter must do to the logits (a share of their length), by the weights' format, to be told from rounding."""


class MergeWitness:
    """Looks at ``ids`` in the adapted model, then in the merged one. ``logits`` and ``sums`` are of the merged one.

    ``adapter`` are the sums of the adapter that was trained, where they are known.
    """

    def __init__(self, ids: Sequence[int], adapter: Mapping[str, str] | None = None) -> None:
        self._ids, self._adapter = ids, adapter
        self._damaged: list[str] = []
        self._before: tuple[Logits, Logits] | None = None
        self.logits: Logits | None = None
        self.sums: dict[str, str] = {}
        self.dtype = "float32"

    def adapted(self, model: Any) -> None:
        """Take the logits with the adapter and without."""
        model.eval()
        self._damaged = differing(adapter_sums(model), self._adapter) if self._adapter else []
        with_adapter = logits_of(model, self._ids)
        with model.disable_adapter():
            self._before = with_adapter, logits_of(model, self._ids)

    def merged(self, model: Any) -> None:
        """Take the logits and the sums of what will be written."""
        self.logits = logits_of(model.eval(), self._ids)
        self.sums = model_sums(model)
        self.dtype = str(model.dtype).removeprefix("torch.")

    def faults(self) -> list[str]:
        """What of the adapter is not in the merged model, beyond rounding."""
        assert self._before
        assert self.logits
        if self._damaged:
            return [f"{len(self._damaged)} weights of its adapter are not those that were trained"]
        adapted, plain = self._before
        if not (far := apart(self.logits, adapted)) <= TOLERANCES.get(self.dtype, TOLERANCES["bfloat16"]):
            return [f"its logits are {far:.2%} from those of its base with the adapter"]
        does, kept = apart(adapted, plain), share_kept(self.logits, adapted, plain)
        if does >= SEEN.get(self.dtype, SEEN["bfloat16"]) and kept < LEAST_KEPT:
            return [
                f"it has {max(kept, 0):.0%} of what the adapter does: the rest was lost in rounding to {self.dtype}"
            ]
        return []


def merged_folder(folder: Path, witness: MergeWitness, stop_ids: tuple[int, ...]) -> SavedFolder:
    """A merged model, which is to be read on the processor, where it was merged."""
    forward = Forward(
        device="cpu",
        dtype="auto",
        tolerance=TOLERANCES["float32" if witness.dtype == "float32" else "float16"],
        sums=witness.sums,
        logits=witness.logits,
        stop_ids=stop_ids,
    )
    return SavedFolder(path=str(folder), forward=forward)
