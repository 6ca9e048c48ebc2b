"""What a process takes of a device beside its tensors: the context, libraries, workspaces, gaps between tensors.

Constants without another source were fitted to steps on one H200 (bench/memory.py, "How well memory is predicted" in
bench/RESULTS.md); tests/launcher/planner/cost/test_memory.py holds them to tests/support/measured_h200.csv.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qlora_profiles.hardware import Gpu
from qlora_profiles.units import GIB, MIB
from qlora_run.planner.cost.inputs import CostInputs

if TYPE_CHECKING:
    from qlora_run.machine.measurements.records import Fitted

CONTEXT_GIB = (
    ((12, 0), 0.60),
    ((10, 0), 0.80),
    ((9, 0), 0.73),
    ((8, 6), 0.45),
    ((8, 0), 0.65),
    ((7, 5), 0.35),
    ((0, 0), 0.35),
)
"""CUDA context, kernels and libraries by lowest capability: measured on an H200 (0.73, torch 2.11). The contexts
alone are said to be 0.14 (T4), 0.22 (L4) and 0.49 (A100); the rest is guessed with care until a run has measured."""
UNKNOWN_CONTEXT_GIB = 0.75
"""Where the capability is not known: a guess on the safe side."""
CONTEXT_8BIT_BYTES = 64 * MIB
"""bitsandbytes' own cuBLAS handle for 8-bit products (H200, the rows of qlora-8)."""
GRAPHS_BYTES, GRAPH_STREAM_BYTES = 160 * MIB, 32 * MIB
"""What some CUDA graphs take of the driver, and the workspaces of the stream that they are captured on (H200: 85 MiB
for the first graph of an 8B, 15 for each further one)."""
OFFLOAD_BYTES = 72 * MIB
"""What the driver takes for page-locked memory and the stream that copies to it (H200: 70 to 78 MiB)."""
CPU_PROCESS_BYTES = GIB
"""The process with its libraries, where main memory is the device's: a guess."""

HOPPER = (9, 0)
"""From this capability on torch gives cuBLAS a workspace of 32 MiB, before it 8 (``CUBLAS_WORKSPACE_CONFIG``)."""
THREADS_WITH_CUBLAS = 2
"""Forward and backward run in threads of their own, each with its cuBLAS workspace inside torch's allocator."""

SMALL_GAPS, BLOCK_GAPS, TILE_GAPS, HEAD_GAPS, PAGE_BYTES = 0.2, 1.6, 0.2, 0.5, 20 * MIB
"""What growing segments lose: a share of what lies in small tensors, so many of a layer's largest blocks, a share
of the tile of logits and of a trained head's gradient, and half a page."""
INT8_COPIES = 2
"""Copies of the widest weight that 8-bit products leave around besides the one they need."""
SCORE_GAPS = 0.5
"""Share of the gradients of eager attention's scores that is lost around them."""
FUSED_BLOCK_GAPS = 0.3
"""Largest blocks lost where fused kernels make few of them."""
BACKEND_BYTES = 128 * MIB
"""What Unsloth holds besides, whatever the step (Qwen3 4B and 8B and Llama 3.1 8B)."""
FIXED_SEGMENTS_GAPS = 0.035
"""Share of the passing memory that segments of fixed size lose beyond that (Windows): between the 3% that fit our own
kernels and the 4% that fit Unsloth's (42 points on an H200)."""
CPU_GAPS = 0.05
"""Share of the passing memory that the CPU's allocator loses: a guess."""

UNCERTAIN_PASSING, UNCERTAIN_STAYING, UNCERTAIN_CONTEXT_BYTES = 0.03, 0.005, int(0.15 * GIB)
"""The error bar before anything was measured here, set by hand: weights are counted, activations are within a few
percent; it covers every measured step (``test_the_error_bar_covers_what_was_measured``)."""
UNCERTAIN_METHODS, UNCERTAIN_FIXED_SEGMENTS = {"qlora-8": 0.06, "full": 0.06}, 0.05
"""More, set by hand, where outliers of the data decide, where tensors of the size of a weight come and go, and where
segments of fixed size leave gaps of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaOverhead:
    """A process on a device: fixed bytes, how passing memory turns into pages, and how well all that is known.

    Passing memory is ``scale`` times what is predicted and ``offset_bytes`` more, with an error bar of
    ``uncertain_share`` of it and ``uncertain_bytes``; ``measured`` says that they come from runs on this machine,
    ``own_run`` that they come from the run in hand, whose staying memory is in them.
    """

    context_bytes: int
    workspace_bytes: int = 0
    scale: float = 1.0
    offset_bytes: int = 0
    uncertain_share: float = UNCERTAIN_PASSING
    uncertain_bytes: int = UNCERTAIN_CONTEXT_BYTES
    measured: bool = False
    own_run: bool = False


def cuda_overhead_of(gpu: Gpu | None, inputs: CostInputs, measured: "Fitted | None" = None) -> CudaOverhead:
    """The overhead on this machine: as measured here, else guessed from the card's generation.

    ``gpu`` is ``None`` where no card is known; ``measured`` comes from runs on this machine (``machine/measurements``).
    """
    if inputs.device == "cpu":
        return CudaOverhead(context_bytes=CPU_PROCESS_BYTES)
    capability = gpu.capability if gpu is not None else None
    workspace = THREADS_WITH_CUBLAS * _workspace_bytes(capability)
    of_method = own_context_bytes(inputs.method, inputs.cuda_graphs, inputs.offload_activations)
    workspace += GRAPH_STREAM_BYTES if inputs.cuda_graphs else 0
    if measured is None:
        return CudaOverhead(
            context_bytes=_context_bytes(capability) + of_method,
            workspace_bytes=workspace,
            uncertain_share=_uncertain_share(inputs),
        )
    return CudaOverhead(
        context_bytes=measured.context_bytes + of_method,
        workspace_bytes=workspace,
        scale=measured.scale,
        offset_bytes=measured.offset_bytes,
        uncertain_share=max(measured.uncertain_share, UNCERTAIN_METHODS.get(inputs.method, 0.0)),
        uncertain_bytes=measured.uncertain_bytes,
        measured=True,
        own_run=measured.own_run,
    )


def block_gaps(inputs: CostInputs) -> float:
    """How many of a layer's largest blocks (``LayerCost.block_token``) growing segments lose."""
    return FUSED_BLOCK_GAPS if inputs.fused_kernels else BLOCK_GAPS


def own_context_bytes(method: str, graphs: bool, offload: bool) -> int:
    """Bytes that a method's libraries, CUDA graphs and offloading take outside torch's allocator."""
    of_method = CONTEXT_8BIT_BYTES if method == "qlora-8" else 0
    return of_method + (GRAPHS_BYTES if graphs else 0) + (OFFLOAD_BYTES if offload else 0)


def _uncertain_share(inputs: CostInputs) -> float:
    usual = UNCERTAIN_PASSING if inputs.expandable_segments else UNCERTAIN_FIXED_SEGMENTS
    return max(usual, UNCERTAIN_METHODS.get(inputs.method, 0.0))


def _context_bytes(capability: tuple[int, int] | None) -> int:
    known = (size for lowest, size in CONTEXT_GIB if capability is not None and capability >= lowest)
    return int(next(known, UNKNOWN_CONTEXT_GIB) * GIB)


def _workspace_bytes(capability: tuple[int, int] | None) -> int:
    return 32 * MIB if capability is None or capability >= HOPPER else 8 * MIB
