"""Errors of libraries while a folder is loaded: damage of its files, or this machine's fault."""

import pytest
import torch

from qlora_core.export.readable import readable
from qlora_profiles.errors import EnvironmentProblem, UserError

MACHINE = {
    "the card's memory ran out": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "main memory ran out": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes"),
    "cannot be loaded (RuntimeError: CUDA error": RuntimeError("CUDA error: an illegal memory access"),
}


@pytest.mark.parametrize("said", MACHINE)
def test_a_machine_that_fails_is_no_damaged_folder(said: str) -> None:
    with pytest.raises(EnvironmentProblem) as caught, readable("folder"):
        raise MACHINE[said]
    assert said in caught.value.message
    assert "damaged" not in caught.value.message


@pytest.mark.parametrize("error", [ValueError("no JSON"), KeyError("r"), OSError("not a valid JSON file")])
def test_what_libraries_say_of_files_is_damage(error: Exception) -> None:
    with pytest.raises(UserError, match="folder: cannot be loaded, its files are damaged"), readable("folder"):
        raise error
