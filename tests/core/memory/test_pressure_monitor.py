from qlora_core.memory.pressure_monitor import CLIFF_STEPS, PATIENCE_STEPS, RETRY_STEPS, PressureMonitor


def steady(
    guard: PressureMonitor, count: int, seconds: float = 1.0, retries: int = 0, share: float = 0.99
) -> list[str | None]:
    return [guard.after_step(1000, seconds, retries, share) for _ in range(count)]


def test_a_steady_run_is_left_alone() -> None:
    assert set(steady(PressureMonitor(), 100)) == {None}


def test_retries_count_only_in_a_row() -> None:
    guard = PressureMonitor()
    assert steady(guard, RETRY_STEPS - 1, retries=1) == [None] * (RETRY_STEPS - 1)
    steady(guard, 1)
    said = steady(guard, RETRY_STEPS, retries=1)
    assert said[:-1] == [None] * (RETRY_STEPS - 1)
    assert "limit" in (said[-1] or "")


def test_a_cliff_counts_only_with_memory_at_the_limit() -> None:
    guard = PressureMonitor()
    steady(guard, 10)
    assert set(steady(guard, 5, seconds=5.0, share=0.5)) == {None}
    guard = PressureMonitor()
    steady(guard, 10)
    assert "cliff" in (steady(guard, CLIFF_STEPS, seconds=5.0)[-1] or "")


def test_a_longer_step_is_no_cliff() -> None:
    guard = PressureMonitor()
    steady(guard, 10)
    assert guard.after_step(5000, 5.0, 0, 0.99) is None


def test_growing_too_early_doubles_the_patience() -> None:
    guard = PressureMonitor()
    guard.shrunk()
    assert guard.patience == PATIENCE_STEPS
    steady(guard, PATIENCE_STEPS - 1)
    assert not guard.may_grow()
    steady(guard, 1)
    assert guard.may_grow()
    guard.grown()
    guard.shrunk()
    assert guard.patience == 2 * PATIENCE_STEPS


def test_a_step_in_which_something_else_was_done_is_not_timed() -> None:
    guard = PressureMonitor()
    for _ in range(10):
        assert guard.after_step(1000, 1.0, 0, 0.99) is None
    for _ in range(10):
        assert guard.after_step(1000, None, 0, 0.99) is None
    assert list(guard.speeds) == [1000.0] * 10
