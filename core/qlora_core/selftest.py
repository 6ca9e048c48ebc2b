"""``python -m qlora_core.selftest``: does this environment really compute? Prints one line of JSON.

That a library imports proves nothing; each test here runs the operation that training stands on. It is
meant for a child process: a crash or a hang is then a verdict too.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any


def nf4() -> dict[str, Any]:
    """A 4-bit product, forward and backward, against the same product of the dequantised weight."""
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.float32
    layer = Linear4bit(256, 256, bias=False, compute_dtype=dtype, quant_type="nf4").to(device)
    x = torch.randn(8, 256, device=device, dtype=dtype, requires_grad=True)
    out = layer(x)
    out.sum().backward()
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(dtype)
    error = ((out - x @ weight.t()).norm() / out.norm()).item()
    if error > 0.01 or x.grad is None:
        raise ArithmeticError(f"the product is off by {error:.1%}")
    return {"device": device, "error": error}


def torch_build() -> dict[str, Any]:
    """What torch says of itself and of the card."""
    import torch

    found: dict[str, Any] = {"version": torch.__version__, "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        found |= {
            "capability": [major, minor],
            "architectures": torch.cuda.get_arch_list(),
            "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
            "free_bytes": torch.cuda.mem_get_info()[0],
        }
    return found


TESTS: dict[str, Callable[[], dict[str, Any]]] = {"torch": torch_build, "nf4": nf4}


def main() -> int:
    """Run every test; a failure is reported and the next one runs."""
    report = {}
    for name, test in TESTS.items():
        start = time.perf_counter()
        try:
            found = test()
            report[name] = {"ok": True, "seconds": round(time.perf_counter() - start, 2), **found}
        except Exception as error:
            report[name] = {"ok": False, "error": f"{type(error).__name__}: {error}"}
    sys.stdout.write(json.dumps(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
