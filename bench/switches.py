"""Kernels that are on or off, by the words of the benchmarks. torch must not be imported here: who imports this has yet
to say how its allocator works.
"""

SWITCHES = {"offload": "offload_activations", "graphs": "cuda_graphs", "rebuild": "rebuild_activations"}
