"""Which of a run's processes this one is. For now a run has one; what asks here is ready for several."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among those that train together.

    ``rank`` counts over all hosts, ``local_rank`` on this one: it is also the number of the card that this process
    computes on, among the cards that it sees.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    def __post_init__(self) -> None:
        if self.world_size != 1:
            raise NotImplementedError("a run is one process for now")

    @property
    def writes(self) -> bool:
        """Whether this process writes what belongs to the whole run: checkpoints, adapters, records."""
        return self.rank == 0

    def total(self, own: int) -> int:
        """The sum of a number over all processes."""
        return own

    def place(self, device: str) -> int | str:
        """Where this process computes, as ``device_map`` names it: a card's number, or the kind of device."""
        return self.local_rank if device == "cuda" else device


SINGLE = Ranks()
"""A run of one process."""
