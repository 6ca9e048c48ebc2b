"""The tests by name. Each is imported when it runs, so that one broken library spoils one test."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

Found = dict[str, Any]

TESTS: dict[str, str] = {
    "torch": "qlora_core.selftest.arithmetic:torch_build",
    "device": "qlora_core.selftest.arithmetic:device_product",
    "adamw": "qlora_core.selftest.arithmetic:fused_adamw",
    "nf4": "qlora_core.selftest.bits:nf4_product",
    "int8": "qlora_core.selftest.bits:int8_product",
    "adam8bit": "qlora_core.selftest.bits:adam8bit_step",
    "varlen": "qlora_core.selftest.kernels:varlen_attention",
    "graphs": "qlora_core.selftest.kernels:cuda_graph",
    "triton": "qlora_core.selftest.kernels:triton_compiles",
    "dequantize": "qlora_core.selftest.kernels:dequantize_kernel",
    "cross_entropy": "qlora_core.selftest.kernels:loss_kernel",
    "liger": "qlora_core.selftest.kernels:liger_layers",
    "unsloth": "qlora_core.selftest.packages:unsloth_imports",
    "workers": "qlora_core.selftest.processes:loader_worker",
    "all_reduce": "qlora_core.selftest.processes:all_reduce",
}
"""Where each test is: a function without arguments that returns what it found.

All raise ``Unavailable`` where there is nothing to try, ArithmeticError where the numbers are others than they should
be, and whatever a broken library raises.
"""


def test_named(name: str) -> Callable[[], Found]:
    """The test called ``name``; its module is imported now. Raises KeyError for an unknown one."""
    module, _, function = TESTS[name].partition(":")
    found: Callable[[], Found] = getattr(import_module(module), function)
    return found


class Unavailable(Exception):
    """The test has nothing to try here; the message says why."""
