"""Kernels of our own and others', and the one way in which they are tried before anything is trained by them."""
