"""Which sample comes when, and every random draw about it: pure functions of (seed, epoch, position).

Nothing here keeps state, so "samples seen" is the whole state of the data and a resumed run continues exactly.
"""

from functools import lru_cache

import numpy as np

from limn.run import seed_for


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of an epoch: every index in [0, count) once. int64[count]."""
    return np.random.default_rng([seed_for("order", seed), epoch]).permutation(count)


def samples(seed: int, first: int, number: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The samples at the places first, first + 1, ... of the endless stream of epochs.

    Returns (epochs, indices), int64[number] each. A batch may span two epochs, so no sample is left out of any.
    """
    places = np.arange(first, first + number)
    epochs = places // count
    indices = [permutation(seed, int(epoch), count)[place % count] for epoch, place in zip(epochs, places, strict=True)]
    return epochs, np.asarray(indices, dtype=np.int64)


def uniform(seed: int, name: str, epoch: int | np.ndarray, index: int | np.ndarray) -> np.ndarray:
    """A number in [0, 1) for the use `name` of the sample `index` in `epoch`; float64, vectorised.

    The mixing function is SplitMix64 (Steele, Lea and Flood 2014), applied once for each part of the counter.
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
        state = np.uint64(seed_for(name, seed))
        for part in (epoch, index):
            state = _mix(state + np.asarray(part).astype(np.uint64)[()] * np.uint64(0x9E3779B97F4A7C15))
        return np.asarray((_mix(state) >> np.uint64(11)) * 2.0**-53)


def _mix(state: np.ndarray | np.uint64) -> np.ndarray | np.uint64:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
