"""bitsandbytes' 8-bit layers without the inputs that they keep for gradients nobody asks for."""

from typing import Any


def forget_inputs(model: Any) -> int:
    """Let the frozen 8-bit layers of ``model`` drop their inputs after each forward; returns how many layers do.

    bitsandbytes (0.50) holds them on its autograd node, out of reach of recomputing layers, for the gradient of the
    weight. A frozen weight has none, and the gradient of the input needs the weight alone.
    """
    from bitsandbytes.nn import Linear8bitLt

    layers = [module for module in model.modules() if isinstance(module, Linear8bitLt)]
    for layer in layers:
        layer.register_forward_hook(_forget)
    return len(layers)


def _forget(module: Any, inputs: Any, output: Any) -> None:
    node = output.grad_fn
    if module.weight.requires_grad or node is None:
        return
    if hasattr(node, "tensors"):  # the product on a card: (transposed input, outliers, input)
        node.tensors = (None, None, None)
    if hasattr(node, "A"):  # the product on a CPU
        node.A = None
