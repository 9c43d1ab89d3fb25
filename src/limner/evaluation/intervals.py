"""How far a number may lie from what it would be on other images of the same kind: intervals, each with its name."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from limner.seeds import seed_for

WILSON, CLOPPER_PEARSON, BOOTSTRAP = "Wilson, 95 %", "Clopper-Pearson, 99.5 %", "bootstrap, 95 %"
"""The kinds that rows come with: of a share of independent trials; of one that the paper compares; of all others."""
NORMAL = 1.959963984540054
"""Standard deviations on each side of the mean that hold 95 % of a normal distribution."""
DRAWS = 1000
"""Samples of a bootstrap."""


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share observed over `count` independent trials (Wilson 1927)."""
    z = NORMAL
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def clopper_pearson(right: int, count: int, *, level: float = 0.995) -> tuple[float, float]:
    """The exact interval of a share, from `right` of `count` independent trials (Clopper and Pearson 1934).

    The paper calls two models equal where one's accuracy lies in the other's interval of 99.5 % (appendix A.3).
    """
    tail = (1 - level) / 2
    numbers = torch.arange(count + 1, dtype=torch.float64)
    ways = math.lgamma(count + 1) - torch.lgamma(numbers + 1) - torch.lgamma(count - numbers + 1)

    def at_least(least: int, share: float) -> float:
        """The chance of `least` right ones or more."""
        logs = ways[least:] + numbers[least:] * math.log(share) + (count - numbers[least:]) * math.log1p(-share)
        return float(logs.logsumexp(dim=0).exp())

    low = 0.0 if right == 0 else _where(lambda share: at_least(right, share) - tail)
    high = 1.0 if right == count else _where(lambda share: at_least(right + 1, share) - (1 - tail))
    return low, high


def _where(rising: Callable[[float], float]) -> float:
    """The share in (0, 1) where a function that rises is 0, by halving."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2


def bootstrap(measure: Callable[[Int[Tensor, " images"]], float], count: int, *, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of `measure`, which is given the numbers of `count` images drawn with replacement: its value on
    all of them, and 1.96 standard deviations of the samples on each side.

    Percentiles of the samples would not do: those of a biased measure, such as a calibration error, may leave its own
    value out. What it gives on samples that it has no value for (NaN: a class is not in them) does not count.
    """
    generator = torch.Generator().manual_seed(seed_for("bootstrap", seed))
    draws = (torch.randint(count, (count,), generator=generator) for _ in range(DRAWS))
    found = torch.tensor([measure(numbers) for numbers in draws], dtype=torch.float64)
    found = found[~found.isnan()]
    if len(found) < 2:
        return float("nan"), float("nan")
    value, half = measure(torch.arange(count)), NORMAL * float(found.std())
    return value - half, value + half


# --- two models on the same images -----------------------------------------------------------------------------------


def mcnemar(only_first: int, only_second: int) -> float:
    """The chance that the images which one of two models alone gets right are split so unevenly, or more, if both were
    equally good: the exact test of McNemar (1947), two-sided."""
    count, few = only_first + only_second, min(only_first, only_second)
    numbers = torch.arange(few + 1, dtype=torch.float64)
    ways = math.lgamma(count + 1) - torch.lgamma(numbers + 1) - torch.lgamma(count - numbers + 1)
    return min(1.0, 2 * float((ways - count * math.log(2)).logsumexp(dim=0).exp()))


def holm(chances: Sequence[float]) -> list[float]:
    """Chances of several tests, corrected so that the chance of a single false alarm among all is what they say
    (Holm 1979)."""
    found, largest = [0.0] * len(chances), 0.0
    for rank, place in enumerate(sorted(range(len(chances)), key=chances.__getitem__)):
        largest = max(largest, min(1.0, (len(chances) - rank) * chances[place]))
        found[place] = largest
    return found
