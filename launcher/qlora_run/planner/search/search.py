"""The fastest execution that fits: how many tokens at a time, how many layers recompute, and the switches and fillers
of the table of rungs.

For a token budget and a set of switches, fewer recomputed layers are always faster and always larger, so one number
decides each and the search is short; what room is then left takes fillers (dequantized weights), which save less for
their size. What does not fit does not count; near ties go to the simpler setting, then to the one that leaves more
room.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from qlora_core.execution.graph_sizes import LARGEST_GRAPHED_TOKENS, graph_sizes
from qlora_core.execution.rungs import FILLERS, SWITCHES
from qlora_profiles.facts import MemoryEstimate
from qlora_run.planner.cost.memory import Costs, longest_that_fits, peak
from qlora_run.planner.cost.offloaded import most_offloaded_tokens, offloaded_bytes
from qlora_run.planner.cost.rungs import costs_with, work_with
from qlora_run.planner.cost.speed import Rates, Work, step_seconds

NOTHING: Mapping[str, int] = {}
NEAR_TIE = 1.005
"""Times within this factor count as equal: set by hand, far below how well they are predicted."""
SMALLEST_BUDGET = 256
STEP = 64
"""Tokens: no smaller budget is tried, and budgets at the data's own sizes are multiples of this. Set by hand."""
PARTS = 8
"""Into so many parts of one size a step may be cut by the budgets tried."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Switches with which memory and time differ; the lower the ``rank``, the simpler they are.

    ``fillers`` are those that can be used, ``most_offloaded_bytes`` is how much main memory may take for activations,
    ``None`` where it is no limit.
    """

    rank: int
    switches: Mapping[str, bool]
    costs: Costs
    work: Work
    fillers: frozenset[str] = frozenset()
    most_offloaded_bytes: int | None = None

    @property
    def offload_activations(self) -> bool:
        """Whether activations wait in main memory."""
        return self.switches["offload_activations"]

    @property
    def cuda_graphs(self) -> bool:
        """Whether a micro-batch is launched at once."""
        return self.switches["cuda_graphs"]

    def holds(self, tokens: int, recomputed: int) -> bool:
        """Whether main memory has room for what the recomputing layers put there."""
        needed = offloaded_bytes(self.costs, tokens, recomputed)
        return self.most_offloaded_bytes is None or needed <= self.most_offloaded_bytes

    def longest(self, budget_bytes: int | None, most_tokens: int) -> int:
        """The longest example that fits both memories with every layer recomputing, or 0."""
        if self.costs.offloaded_token and self.most_offloaded_bytes is not None:
            most_tokens = min(most_tokens, most_offloaded_tokens(self.costs, self.most_offloaded_bytes))
        return longest_that_fits(self.costs, budget_bytes, most_tokens)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An execution with what it takes; ``filled`` are its fillers, each with its number of layers."""

    variant: Variant
    token_budget: int
    layers_recomputed: int
    filled: Mapping[str, int]
    step_seconds: float
    memory: MemoryEstimate

    def value(self, name: str) -> int:
        """A searched setting of it."""
        sizes = {"token_budget": self.token_budget, "layers_recomputed": self.layers_recomputed}
        return {**sizes, **self.filled, **self.variant.switches}[name]


@dataclass(frozen=True, kw_only=True)
class Found:
    """The execution chosen, out of how many that fit, and the best of the others."""

    best: Candidate
    fitting: int
    runner_up: Candidate | None = None


@dataclass(frozen=True)
class Search:
    """One model and method on one machine.

    Attributes:
        variants: kernels to choose from, the simplest first.
        longest_tokens: the longest example; it is computed whole, whatever the token budget.
        most_tokens: most that one step can have.
        budget_bytes: most memory; ``None`` where nothing limits it.
        token_budget: a person's own, or ``None``.
        layers_recomputed: a person's own, or ``None``.
        fillers: a person's own.
    """

    variants: tuple[Variant, ...]
    rates: Rates
    longest_tokens: int
    most_tokens: int
    budget_bytes: int | None
    token_budget: int | None = None
    layers_recomputed: int | None = None
    fillers: Mapping[str, int] = field(default_factory=dict)

    @property
    def costs(self) -> Costs:
        """Those of the simplest variant."""
        return self.variants[0].costs

    def candidate(
        self,
        token_budget: int,
        layers_recomputed: int,
        variant: Variant | None = None,
        filled: Mapping[str, int] = NOTHING,
    ) -> Candidate:
        """One execution, whether it fits or not."""
        variant, filled = variant or self.variants[0], self._filled(filled)
        work = work_with(variant.work, filled)
        return Candidate(
            variant=variant,
            token_budget=token_budget,
            layers_recomputed=layers_recomputed,
            filled=filled,
            step_seconds=step_seconds(work, self.rates, token_budget, layers_recomputed),
            memory=self.memory(variant, token_budget, layers_recomputed, filled),
        )

    def memory(
        self, variant: Variant, token_budget: int, layers_recomputed: int, filled: Mapping[str, int] = NOTHING
    ) -> MemoryEstimate:
        """The peak of the largest micro-batch."""
        costs = costs_with(variant.costs, self._filled(filled))
        several = token_budget < self.most_tokens or variant.cuda_graphs  # whose gradients have a place of their own
        tokens = self.largest_batch(token_budget, variant)
        return peak(costs, tokens, layers_recomputed, self.budget_bytes, several)

    def _filled(self, filled: Mapping[str, int]) -> Mapping[str, int]:
        """A number for each filler: a person's own, the one given, or none."""
        return {name: self.fillers.get(name, filled.get(name, 0)) for name in FILLERS}

    def largest_batch(self, token_budget: int, variant: Variant) -> int:
        """Most tokens of a micro-batch: the budget, an example that is longer, or all that a step has.

        The largest graph is there whether a step ever fills it or not.
        """
        tokens = max(token_budget, self.longest_tokens)
        return graph_sizes(tokens)[0] if variant.cuda_graphs else min(tokens, self.most_tokens)

    @cached_property
    def token_budgets(self) -> list[int]:
        """The budgets worth trying: from the longest example to a whole step, and even parts of one."""
        if self.token_budget is not None:
            return [self.token_budget]
        smallest = max(SMALLEST_BUDGET, -(-self.longest_tokens // STEP) * STEP)
        whole = max(map(sum, self.variants[0].work.steps))
        largest = max(smallest, -(-whole // STEP) * STEP)
        grid = {smallest, *(-(-whole // (parts * STEP)) * STEP for parts in range(1, PARTS + 1))}
        power = SMALLEST_BUDGET
        while power < 2 * largest:
            grid |= {power, power * 5 // 4, power * 3 // 2, power * 7 // 4}
            power *= 2
        enough = min(tokens for tokens in grid if tokens >= largest) if max(grid) >= largest else largest
        return sorted(tokens for tokens in grid if smallest <= tokens <= enough)

    def fits(self, variant: Variant, token_budget: int, layers_recomputed: int) -> bool:
        """Whether an execution fits both memories."""
        tokens = self.largest_batch(token_budget, variant)
        if variant.cuda_graphs and tokens > LARGEST_GRAPHED_TOKENS:
            return False
        inside = self.memory(variant, token_budget, layers_recomputed).fits
        return inside and variant.holds(tokens, layers_recomputed)

    def fewest_recomputed(self, token_budget: int, variant: Variant | None = None, near: int = 0) -> int | None:
        """The fewest layers that must recompute for this budget to fit; ``None`` when it cannot.

        ``near`` is a guess, looked at first.
        """
        variant = variant or self.variants[0]
        if self.layers_recomputed is not None:
            return self.layers_recomputed if self.fits(variant, token_budget, self.layers_recomputed) else None
        total = self.costs.num_layers

        def fits(layers: int) -> bool:
            return self.memory(variant, token_budget, layers).fits

        low, high = 0, total
        if near < total and not fits(near):
            low = near + 1
        elif near < total:
            low, high = near if near and not fits(near - 1) else 0, near
        fewest = bisect_left(range(total), True, low, high, key=fits)
        return fewest if self.fits(variant, token_budget, fewest) else None

    def _fuller(self, plain: Candidate) -> Iterator[Candidate]:
        """The same with the most of each filler that there is room for, one on top of the other."""
        for name in FILLERS:
            if most := self._most(plain, name):
                counts = plain.token_budget, plain.layers_recomputed, plain.variant
                plain = self.candidate(*counts, {**plain.filled, name: most})
                yield plain

    def _most(self, plain: Candidate, name: str) -> int:
        """The most layers of a filler that fit into the room that is left; 0 where a person has decided it."""
        if name not in plain.variant.fillers or name in self.fillers:
            return 0
        costs, memory = plain.variant.costs, plain.memory
        if memory.budget_bytes is None:
            return costs.num_layers
        room = memory.budget_bytes - memory.peak_bytes - memory.error_bytes
        one = costs_with(costs, {name: 1}).staying_bytes - costs.staying_bytes
        most = min(costs.num_layers, max(0, room // max(1, one)))
        counts = (plain.variant, plain.token_budget, plain.layers_recomputed)
        while most and not self.memory(*counts, {**plain.filled, name: most}).fits:  # they have an error bar, too
            most -= 1
        return most

    def longest(self, most_tokens: int) -> int:
        """The longest example that any of the variants can take, or 0."""
        return max(variant.longest(self.budget_bytes, most_tokens) for variant in self.variants)

    def run(self) -> Found | None:
        """The fastest execution that fits, or ``None``; held to grids measured whole by bench/search.py."""
        candidates, count = [], 0
        for variant, tokens, layers in self._worth_looking_at():
            plain = self.candidate(tokens, layers, variant)
            ways = [plain, *self._fuller(plain)]
            candidates += ways
            count += sum(ways[-1].filled.values()) - sum(plain.filled.values())
            count += 1 if self.layers_recomputed is not None else self.costs.num_layers - layers + 1
        if not candidates:
            return None
        best = self._best(candidates)
        others = [candidate for candidate in candidates if candidate is not best]
        return Found(best=best, fitting=count, runner_up=self._best(others) if others else None)

    def _worth_looking_at(self) -> Iterator[tuple[Variant, int, int]]:
        """Variants with the token budgets that fit and the fewest layers that must recompute then.

        Not those that differ from a simpler one in name only: nothing to offload where nothing recomputes, nothing
        to make again where everything fits.
        """
        roomy: set[tuple[bool | int, ...]] = set()
        telling = [name for name, how in SWITCHES.items() if not how.idle_with_room]
        for variant in self.variants:
            layers: int | None = 0
            for tokens in self.token_budgets:
                layers = self.fewest_recomputed(tokens, variant, near=layers or 0)
                same = (tokens, *(variant.switches[name] for name in telling))
                if layers is None or same in roomy or (layers == 0 and self._offloads_nothing(variant)):
                    continue
                if layers == 0:
                    roomy.add(same)
                yield variant, tokens, layers

    def _offloads_nothing(self, variant: Variant) -> bool:
        return variant.offload_activations and not self.variants[0].offload_activations

    def _best(self, candidates: list[Candidate]) -> Candidate:
        """The fastest; of those as good as equal the simplest, the smallest, the one of fewest tokens."""
        fastest = min(candidate.step_seconds for candidate in candidates)
        near = [candidate for candidate in candidates if candidate.step_seconds <= NEAR_TIE * fastest]
        return min(near, key=lambda c: (c.variant.rank, c.memory.peak_bytes, c.token_budget))

    def smallest(self) -> Candidate:
        """The execution that takes the least memory."""
        total, tokens = self.costs.num_layers, self.token_budgets[0]
        tried = (total, max(0, total - 1)) if self.layers_recomputed is None else (self.layers_recomputed,)
        candidates = [self.candidate(tokens, count, v) for count in tried for v in self.variants]
        held = [c for c in candidates if c.variant.holds(self.largest_batch(tokens, c.variant), c.layers_recomputed)]
        return min(held or candidates, key=lambda c: c.memory.peak_bytes)


def compared(chosen: Candidate, other: Candidate) -> str:
    """Another execution in a person's words: ``2,048: 9% slower, 0.9 GiB less``, without its name."""
    return f"{_speed_words(chosen, other)}, {_memory_words(chosen, other)}"


def described(candidate: Candidate, chosen: Candidate, total_layers: int) -> str:
    """An execution by what sets it apart from the chosen one: ``6,144 tokens, 30 of 36 recomputed, CUDA graphs``."""
    words = [f"{candidate.token_budget:,} tokens", f"{candidate.layers_recomputed} of {total_layers} recomputed"]
    for name, how in (FILLERS | SWITCHES).items():
        value, (on, off) = candidate.value(name), how.labels
        if value != chosen.value(name):
            words.append(f"{value} {on}" if how.kind == "filler" else on if value else off)
    return ", ".join(words)


def _speed_words(chosen: Candidate, other: Candidate) -> str:
    ratio = other.step_seconds / chosen.step_seconds
    if abs(ratio - 1) <= NEAR_TIE - 1:
        return "as fast"
    return f"{ratio - 1:.0%} slower" if ratio > 1 else f"{1 - ratio:.0%} faster"


def _memory_words(chosen: Candidate, other: Candidate) -> str:
    gained = (other.memory.peak_bytes - chosen.memory.peak_bytes) / 2**30
    if abs(gained) < 0.05:
        return "the same memory"
    words = f"{abs(gained):.1f} GiB {'more' if gained > 0 else 'less'}"
    return words if other.memory.fits else f"{words}: too much"
