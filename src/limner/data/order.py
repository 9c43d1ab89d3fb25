"""Which sample comes when, and every random draw about it: pure functions of (seed, epoch, position).

```
epoch ─> parts permuted ─> cut into windows of about 65,536 pairs ─> pairs permuted inside each window ─> positions
```

Nothing here keeps state, so "pairs seen" is the whole state of the data and a resumed run continues exactly, with any
number of ranks and workers. Each pair comes once in an epoch. A window is a few shards, so that reading them stays near
to sequential; a source of fewer pairs is one window, shuffled as a whole. Memory: some numbers for each part, none for
each pair, for a permutation is computed, not kept.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from limner.seeds import seed_for

WINDOW = 65_536
"""Pairs that are shuffled together, about."""
GAMMA = np.uint64(0x9E3779B97F4A7C15)
CELL = 1024
"""Pairs of a mixture among which its sources are mixed by chance; every cell has each source's share."""


def permuted(
    places: np.ndarray, counts: int | np.ndarray, keys: int | np.ndarray, most: int | None = None
) -> np.ndarray:
    """Where each of `places` in [0, counts) comes in the permutation that `keys` names; int64, elementwise.

    The swap-or-not shuffle (Hoang, Morris and Rogaway 2012): in each round a place is exchanged with its mirror image
    about a random point, or is not, by the toss of a coin that both share. It takes any count as it is, and six times
    log2(count) rounds leave nothing to tell it from a random permutation by. With several counts, `most` is the largest
    that any call will have: it decides on the rounds.
    """
    places, counts = np.asarray(places, dtype=np.int64), np.asarray(counts, dtype=np.int64)
    with np.errstate(over="ignore"):
        keys = np.asarray(keys).astype(np.uint64)
        for number in range(6 * (int(counts) if most is None else most).bit_length()):
            key = np.asarray(_mix(keys + np.uint64(number) * GAMMA))
            mirrored = ((key % counts.astype(np.uint64)).astype(np.int64) - places) % counts
            coins = _mix(np.maximum(places, mirrored).astype(np.uint64) ^ key)
            places = np.where(coins & np.uint64(1), mirrored, places)
    return places


def _keys(name: str, seed: int, epochs: int | np.ndarray, numbers: int | np.ndarray) -> np.ndarray:
    """Keys of permutations, uint64, one for each epoch and number."""
    state = np.uint64(seed_for(name, seed))
    with np.errstate(over="ignore"):
        for part in (epochs, numbers):
            state = _mix(state + np.asarray(part).astype(np.uint64)[()] * GAMMA)
    return np.asarray(state)


class Stock:
    """The pairs of one source: how many each of its parts has, and in which order they come."""

    def __init__(self, counts: Sequence[int], seed: int) -> None:
        self.seed = seed
        self.starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        """The first index of each part, and the number of pairs: int64[parts + 1]."""
        self.pairs = int(self.starts[-1])
        self.windows = max(1, min(len(counts), round(self.pairs / WINDOW)))
        """The number of windows in an epoch."""
        self._layout = lru_cache(maxsize=4)(self._layout_of)

    def samples(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The indices of the pairs at `positions` of an epoch: int64[positions]."""
        parts, begins, windows = self._layout(epoch)
        window = np.searchsorted(windows, positions, side="right") - 1
        first, sizes = windows[window], np.diff(windows)
        keys = _keys("windows", self.seed, epoch, window)
        places = first + permuted(positions - first, sizes[window], keys, int(sizes.max()))
        part = np.searchsorted(begins, places, side="right") - 1
        return self.starts[parts[part]] + places - begins[part]

    def _layout_of(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The parts in the order of an epoch, where each of these begins, and where each window does.

        int64[parts], [parts + 1], [windows + 1].
        """
        counts = np.diff(self.starts)
        parts = permuted(np.arange(len(counts)), len(counts), _keys("parts", self.seed, epoch, 0))
        begins = np.concatenate([[0], np.cumsum(counts[parts])])
        return parts, begins, begins[np.arange(self.windows + 1) * len(counts) // self.windows]


class Order:
    """The endless stream of epochs over one source, or over several with weights.

    `stocks` holds the part counts of each source, `weights` how often an epoch sees each pair of it.
    """

    def __init__(self, stocks: Sequence[Sequence[int]], weights: Sequence[float], *, seed: int) -> None:
        self.seed = seed
        self.stocks = [
            Stock(counts, seed if number == 0 else seed_for(f"source {number}", seed))
            for number, counts in enumerate(stocks)
        ]
        sizes = [
            max(min(1, stock.pairs), round(weight * stock.pairs))
            for weight, stock in zip(weights, self.stocks, strict=True)
        ]
        self.shares = np.array(sizes, dtype=np.int64)
        """Positions of each source in an epoch."""
        self.pairs = int(self.shares.sum())
        """Positions in an epoch."""
        self._firsts = np.concatenate([[0], np.cumsum([stock.pairs for stock in self.stocks])])

    def samples(self, first: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The samples at the places first, first + 1, ... of the stream: (epochs, indices), int64[number] each.

        A batch may span two epochs, so no pair is left out of any. In a mixture the epoch is that of the pair's own
        source, so that a pair's draws differ each time it comes.
        """
        return self.at(np.arange(first, first + number))

    def at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`samples` at any places of the stream, int64."""
        epochs, positions = np.divmod(places, self.pairs)
        sources, places = self._mixed(epochs, positions)
        own_epochs, indices = np.empty_like(places), np.empty_like(places)
        for source in np.unique(sources):
            stock, here = self.stocks[source], sources == source
            own_epochs[here], own = np.divmod(places[here], stock.pairs)
            for epoch in np.unique(own_epochs[here]):
                there = here.copy()
                there[here] = own_epochs[here] == epoch
                indices[there] = self._firsts[source] + stock.samples(int(epoch), own[own_epochs[here] == epoch])
        return own_epochs, indices

    def _mixed(self, epochs: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which source each position belongs to, and its place in that source's own endless stream.

        An epoch is cut into cells. Cell c of C holds the places floor(c m / C) to floor((c + 1) m / C) of a source with
        m positions, permuted with the other sources' inside the cell.
        """
        if len(self.stocks) == 1:
            return np.zeros_like(positions), epochs * self.pairs + positions
        cells = max(1, self.pairs // CELL)
        # a cell begins at c x pairs / C, less what its sources round down: fewer positions than a cell has
        cell = positions * cells // self.pairs
        is_later = (cell + 1 < cells) & (self._begin(cell + 1, cells).sum(axis=-1) <= positions)
        cell = cell + is_later
        begin, end = self._begin(cell, cells), self._begin(cell + 1, cells)
        sizes = (end - begin).sum(axis=-1)
        keys = _keys("cells", self.seed, epochs, cell)
        most = -(-self.pairs // cells) + len(self.stocks)
        inside = permuted(positions - begin.sum(axis=-1), sizes, keys, most)
        ends = np.cumsum(end - begin, axis=-1)
        sources = (inside[:, None] >= ends).sum(axis=-1)
        row = np.arange(len(inside))
        before = (ends - (end - begin))[row, sources]
        return sources, epochs * self.shares[sources] + begin[row, sources] + inside - before

    def _begin(self, cell: np.ndarray, cells: int) -> np.ndarray:
        """The number of positions of each source before a cell: int64[... sources]."""
        return np.asarray(cell)[..., None] * self.shares // cells


def quality(order: Order) -> dict[str, float | int]:
    """How well an order shuffles, from at most 8,192 places spread over an epoch.

    position_correlation: of a pair's place in the epoch with its place on disk. With parts in random order it lies
    within `by_chance` (two standard deviations: two by the root of the number of parts, or of pairs where all are one
    window) of zero 95 times of 100. pairs: of an epoch; window_pairs: shuffled together.
    """
    number = min(order.pairs, 8192)
    in_parts = [len(stock.starts) - 1 for stock in order.stocks if stock.windows > 1]
    positions = np.linspace(0, order.pairs - 1, number).astype(np.int64)
    _, indices = order.at(positions)
    return {
        "pairs": order.pairs,
        "window_pairs": order.stocks[0].pairs // order.stocks[0].windows,
        "position_correlation": float(np.corrcoef(positions, indices)[0, 1]) if number > 2 else 0.0,
        "by_chance": min(1.0, 2 / max(1, min([number, *in_parts])) ** 0.5),
    }


def uniform(seed: int, name: str, epoch: int | np.ndarray, index: int | np.ndarray) -> np.ndarray:
    """A number in [0, 1) for the use `name` of the sample `index` in `epoch`; float64, vectorised.

    The mixing function is SplitMix64 (Steele, Lea and Flood 2014), applied once for each part of the counter.
    """
    with np.errstate(over="ignore"):
        return np.asarray((_mix(_keys(name, seed, epoch, index)) >> np.uint64(11)) * 2.0**-53)


def _mix(state: np.ndarray | np.uint64) -> np.ndarray | np.uint64:
    """Arithmetic is modulo 2**64, as is meant."""
    state = state + GAMMA
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
