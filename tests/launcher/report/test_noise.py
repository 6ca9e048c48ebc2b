import math

import pytest

from qlora_run.report.noise import paired, trend


def test_a_mean_change_has_the_error_that_a_table_gives() -> None:
    move = paired((1.0, 2.0, 3.0, 4.0), (0.9, 1.7, 2.8, 3.6))
    assert move.change == pytest.approx(-0.25)
    assert move.noise == pytest.approx(3.18 * 0.1290994 / 2, rel=1e-3)
    assert move.certain


def test_one_thing_measured_twice_shows_nothing() -> None:
    assert not paired((2.0,), (1.0,)).certain
    assert not paired((), ()).certain
    assert not trend((2.0, 1.0)).certain


def test_a_line_falls_by_its_own_length() -> None:
    assert trend([3.0, 2.0, 1.0, 0.0]).change == pytest.approx(-3.0)
    assert trend([3.0, 2.0, 1.0, 0.0]).certain
    assert not trend([1.0, 2.0, 2.0, 1.0]).certain
    assert not trend([math.nan] * 5).certain
