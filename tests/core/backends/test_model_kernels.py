"""A plan's kernels in whole runs: the same losses, and what is written can be read without them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.adapted import adapted
from support.models import random_examples, save_tiny_model, write_rows
from support.plans import EXECUTION, plan

from qlora_core.backends.model_kernels import graphed, use_kernels
from qlora_core.backends.packed_loss import packed_loss
from qlora_core.execution.limits import Limits
from qlora_core.model.packing import pack
from qlora_core.session.control import Control
from qlora_core.session.event_log import EventLog
from qlora_core.train.run import run
from qlora_profiles import events, run_folder
from qlora_profiles.errors import EnvironmentProblem
from qlora_profiles.settings import Execution

pytestmark = pytest.mark.filterwarnings("default")


def trained(folder: Path, model: Path, data: Path, **settings: Any) -> list[Any]:
    folder.mkdir()
    log = EventLog(folder)
    assert run(plan(model, data, folder, steps=4, **settings), log, Control()) == 0
    log.close()
    return events.all_events(folder / run_folder.EVENTS)


def test_a_run_with_fused_adapters_is_the_run_without(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model, data = save_tiny_model(tmp_path / "model"), write_rows(tmp_path / "rows.jsonl")
    plain = trained(tmp_path / "plain", model, data)
    fused = trained(tmp_path / "fused", model, data, adapter_kernel="fused", layers_recomputed=2)
    for kind in (events.StepEvent, events.EvalEvent):
        expected = [e.loss for e in plain if isinstance(e, kind)]
        assert [e.loss for e in fused if isinstance(e, kind)] == pytest.approx(expected, rel=1e-4)
        assert len(expected) > 1
    saved = [load_file(next((tmp_path / name).rglob("adapter_model.safetensors"))) for name in ("plain", "fused")]
    assert saved[0].keys() == saved[1].keys()


def execution(**changes: Any) -> Execution:
    return Execution(**(EXECUTION | {"vram_budget_bytes": None} | changes))


def test_nothing_is_replaced_unless_the_plan_says_so() -> None:
    model = adapted()
    use_kernels(model, execution(), pytest.fail)
    assert not any("forward" in vars(module) for module in model.modules())
    use_kernels(model, execution(adapter_kernel="fused", compute_dtype="float32"), pytest.fail)
    assert sum("forward" in vars(module) for module in model.modules()) == 21


def test_liger_that_is_not_installed_is_said() -> None:
    from importlib.util import find_spec

    if find_spec("liger_kernel"):
        pytest.skip("liger is installed here")
    with pytest.raises(EnvironmentProblem, match="liger"):
        use_kernels(adapted(), execution(layer_kernels="liger"), pytest.fail)


@pytest.mark.parametrize(
    ("asked", "offload", "head", "expected"),
    [(True, False, True, True), (False, False, True, False), (True, True, True, False), (True, False, False, False)],
)
def test_graphs_only_where_they_can_be(asked: bool, offload: bool, head: bool, expected: bool) -> None:
    kernel = "chunked" if head else "logits"
    loss_function = packed_loss(adapted(), attention="sdpa", kernel=kernel, chunk_tokens=16, autocast_dtype=None)
    limits = Limits(token_budget=512, layers_recomputed=0, offload_activations=offload, cuda_graphs=asked)
    assert (graphed(loss_function, limits, pytest.fail) is not None) == expected


def test_what_is_captured_casts_anew_each_time() -> None:
    """Autocast's cache would hand out a copy from before the optimizer's step, for ever."""
    seen: list[bool] = []
    model = adapted()
    model.get_base_model().model.norm.register_forward_pre_hook(
        lambda module, inputs: seen.append(torch.is_autocast_cache_enabled())
    )
    loss_function = packed_loss(
        model, attention="sdpa", kernel="chunked", chunk_tokens=16, autocast_dtype=torch.bfloat16
    )
    limits = Limits(token_budget=512, layers_recomputed=0, cuda_graphs=True)
    decoder = graphed(loss_function, limits, pytest.fail)
    assert decoder is not None
    seen.clear()
    with loss_function.autocast("cpu"):
        decoder._decode(pack(random_examples(2), torch.device("cpu")))
    assert seen == [False]
