"""Every check of the doctor, in one table."""

from collections.abc import Callable
from dataclasses import dataclass

from qlora_run.doctor.check_context import CheckContext
from qlora_run.doctor.checks import cards, hub, kernels, memory, planned, software, storage, system
from qlora_run.doctor.diagnosis import Finding
from qlora_run.doctor.findings import Seen, note


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A check: its id, what it is about, and the look itself; a minor one is only named while it is well."""

    id: str
    about: str
    look: Callable[[CheckContext], Seen | list[Seen]]
    minor: bool = True

    def findings(self, subject: CheckContext) -> list[Finding]:
        """What it finds: one finding, or one for each card, process or pair."""
        seen = self._seen(subject)
        return [self._finding(one) for one in (seen if isinstance(seen, list) else [seen])]

    def _seen(self, subject: CheckContext) -> Seen | list[Seen]:
        """What the look sees; a look that fails says so and spoils no other."""
        try:
            return self.look(subject)
        except Exception as error:  # whatever is broken here is what the doctor was called for
            return note(f"could not be looked at: {type(error).__name__}: {error}")

    def _finding(self, seen: Seen) -> Finding:
        values = {name: getattr(seen, name) for name in seen.__struct_fields__}
        return Finding(id=self.id, minor=self.minor, **values)


CHECKS: tuple[Check, ...] = (
    Check(id="gpu", about="the cards, their age and their memory", look=cards.gpu, minor=False),
    Check(id="torch", about="torch's build against the card", look=software.torch, minor=False),
    Check(id="driver", about="the driver's CUDA against torch's", look=software.driver),
    Check(id="architecture", about="torch's code against the card's capability", look=cards.architecture),
    Check(id="packages", about="what training imports, and its versions", look=software.packages),
    Check(id="known-bad", about="versions known not to work together", look=software.pairs),
    Check(id="torch-import", about="torch imports", look=kernels.torch_import),
    Check(id="device", about="a product on the device", look=kernels.device),
    Check(id="4-bit", about="a real 4-bit product", look=kernels.four_bit, minor=False),
    Check(id="bf16", about="bfloat16 in hardware", look=cards.bf16),
    Check(id="vram", about="free memory of the cards, and who holds the rest", look=cards.vram),
    Check(id="visible", about="hidden and doubtful cards", look=cards.visible),
    Check(id="display", about="a card that draws the desktop", look=cards.display),
    Check(id="driver-model", about="WDDM, TCC or MCDM", look=cards.driver_model),
    Check(id="spill", about="VRAM moved to RAM in silence", look=cards.spill),
    Check(id="several-cards", about="more than one card", look=planned.several_cards),
    Check(id="ram", about="free main memory", look=memory.ram, minor=False),
    Check(id="container-memory", about="a container's limit", look=memory.container_memory),
    Check(id="wsl-memory", about="WSL's share of the machine", look=memory.wsl_memory),
    Check(id="page-file", about="what Windows would promise (error 1455)", look=memory.commit),
    Check(id="cache-disk", about="room for the download", look=storage.cache_disk, minor=False),
    Check(id="output-disk", about="room for checkpoints and merges", look=storage.output_disk),
    Check(id="cache-folder", about="the hub's cache can be written", look=storage.cache_folder),
    Check(id="output-folder", about="the output folder can be written", look=storage.output_folder),
    Check(id="plan", about="the plan of the model", look=planned.plan, minor=False),
    Check(id="symlinks", about="links in the hub's cache (WinError 1314)", look=storage.symlinks),
    Check(id="long-paths", about="Windows' limit of 260 letters", look=system.long_paths),
    Check(id="8-bit", about="a real 8-bit product", look=kernels.eight_bit),
    Check(id="8-bit-optimizer", about="a real step of the 8-bit AdamW", look=kernels.eight_bit_optimizer),
    Check(id="fused-adamw", about="a real step of the fused AdamW", look=kernels.fused_adamw),
    Check(id="varlen", about="packed attention, run", look=kernels.varlen),
    Check(id="cuda-graphs", about="a captured gradient, run again", look=kernels.cuda_graphs),
    Check(id="triton", about="a Triton kernel, compiled and run", look=kernels.triton),
    Check(id="dequantize-kernel", about="4-bit weights dequantized by our kernel", look=kernels.dequantize_kernel),
    Check(id="loss-kernel", about="losses and slopes by our kernel", look=kernels.loss_kernel),
    Check(id="liger", about="Liger's layers, run", look=kernels.liger),
    Check(id="unsloth", about="Unsloth, imported", look=kernels.unsloth),
    Check(id="unsloth-pins", about="what Unsloth asks for", look=software.unsloth_pins),
    Check(id="workers", about="a loader process, started", look=kernels.workers),
    Check(id="all-reduce", about="a sum over all cards", look=kernels.all_reduce),
    Check(id="network", about="the hub or its mirror", look=hub.endpoint),
    Check(id="token", about="a token for gated models", look=hub.token),
    Check(id="python", about="Python's version and width", look=system.python),
    Check(id="platform", about="the operating system and processor", look=system.platform),
    Check(id="console", about="the console's encoding", look=system.console),
    Check(id="encoding", about="the locale, and file names", look=system.text_encoding),
    Check(id="clock", about="the clock", look=system.clock),
)
"""Of several problems the first is the one to mend: causes stand above what follows from them."""


def examine(subject: CheckContext) -> list[Finding]:
    """Every finding, in the order of the table."""
    return [finding for check in CHECKS for finding in check.findings(subject)]
