"""``python -m support.one_backend JOB.json``: one backend in a process of its own, as every run has it.

It writes losses and gradients of the same examples under several numbers of recomputed layers, how often decoder
layers were computed for each, and the loss of an adapter that it trained (or that another backend did).
"""

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from qlora_core import backends
from qlora_core.backends.parity import take_steps
from qlora_core.execution.limits import Limits
from qlora_core.model import lora_init
from qlora_core.model.packing import pack
from qlora_profiles.plan import RunPlan
from support.models import random_examples
from support.plans import plan

COUNTS = (0, 2, 3)
GRADIENTS, ADAPTER = "gradients.safetensors", "adapter"


def job_plan(job: dict[str, Any]) -> RunPlan:
    """The plan of a job, which is one process's share of a test."""
    model, folder = Path(job["model"]), Path(job["folder"])
    made = plan(model, model / "rows.jsonl", folder, **job["settings"])
    return msgspec.structs.replace(made, model=msgspec.structs.replace(made.model, model_type=job["family"]))


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    made, folder = job_plan(job), Path(job["folder"])
    backend = backends.create(made.execution_values().backend)
    backend.prepare(made)
    loaded = backend.load(made, print)
    told: dict[str, Any] = {"losses": {}, "calls": {}, "dtypes": _dtypes(loaded.model)}
    device = next(loaded.model.parameters()).device
    packed = pack(random_examples(6, seed=2, longest=60), device)
    _stir(loaded.model)
    gradients: dict[str, Any] = {}
    for count in COUNTS:
        calls = _counted(loaded.model)
        loss = backend.apply(loaded, Limits(token_budget=512, layers_recomputed=count))(packed)
        loss.backward()
        told["losses"][str(count)] = float(loss.detach())
        told["calls"][str(count)] = calls.stop()
        found = {n: p.grad.float().cpu() for n, p in loaded.model.named_parameters() if p.grad is not None}
        gradients |= {f"{count}/{name}": grad.contiguous() for name, grad in found.items()}
        loaded.model.zero_grad(set_to_none=True)
    _save(gradients, folder / GRADIENTS)
    told["adapter_loss"] = _adapter_loss(backend, loaded, made, job, packed)
    (folder / "told.json").write_text(json.dumps(told), encoding="utf-8")


def _save(tensors: dict[str, Any], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(tensors, str(path))


def _adapter_loss(backend: Any, loaded: Any, made: RunPlan, job: dict[str, Any], packed: Any) -> float:
    """Loss with an adapter that was trained and saved here, or with the one that a job names."""
    import torch

    if job["adapter"]:
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        result = set_peft_model_state_dict(loaded.model, load_file(Path(job["adapter"]) / "adapter_model.safetensors"))
        assert not result.unexpected_keys
    else:
        lora_init.initialise(loaded.model, 7)
        examples = [example.input_ids for example in random_examples(6, seed=4, longest=60)]
        told = take_steps(backend, loaded, made, examples)
        assert told.losses[-1] < told.losses[0]
        loaded.model.save_pretrained(str(Path(job["folder"]) / ADAPTER))
    loss_sum = backend.apply(loaded, Limits(token_budget=512, layers_recomputed=0))
    loaded.model.eval()
    with torch.no_grad():
        return float(loss_sum.token_losses(packed).mean())


def _stir(model: Any) -> None:
    """The same adapter values everywhere, none of them zero."""
    import torch

    lora_init.initialise(model, 7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                values = torch.empty(parameter.shape).normal_(0, 0.05, generator=torch.Generator().manual_seed(3))
                parameter.copy_(values)
    model.train()


def _dtypes(model: Any) -> list[str]:
    return sorted({str(p.dtype) for p in model.parameters() if p.requires_grad})


class _counted:
    """How often decoder layers' attention is computed: once, and again where a layer recomputes."""

    def __init__(self, model: Any) -> None:
        from qlora_core.memory.checkpointed_layers import decoder_layers

        self.calls = 0
        self._handles = [layer.self_attn.register_forward_pre_hook(self._one) for layer in decoder_layers(model)]

    def _one(self, *args: Any) -> None:
        self.calls += 1

    def stop(self) -> int:
        for handle in self._handles:
            handle.remove()
        return self.calls


if __name__ == "__main__":
    main()
