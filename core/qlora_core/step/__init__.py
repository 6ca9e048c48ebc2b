"""One optimizer step: the same gradient however it is cut, whatever the kernels."""
