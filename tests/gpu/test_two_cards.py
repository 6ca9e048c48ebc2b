"""Two cards and more: the doctor lets them add up a number through NCCL."""

from pathlib import Path

import pytest
import torch
from support.doctor_plants import doctor, failed, result_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA cards")]


def test_the_doctor_sums_over_all_cards(tmp_path: Path) -> None:
    cards = torch.cuda.device_count()
    found = doctor(tmp_path, card=True)
    assert failed(found) == {}
    summed = result_of(found, "all-reduce")
    assert summed.verdict == "ok", summed
    assert summed.evidence == str({"backend": "nccl", "ranks": cards})
    assert result_of(found, "several-cards").seen.startswith(f"{cards} cards: ")
