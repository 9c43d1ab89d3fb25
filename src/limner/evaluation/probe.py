"""The linear probe (paper appendix A.3): logistic regression on features, its strength found by a parametric search.

```
features [images embed] ─> Basis: mean, axes, spread ─┐
labels ───────────────────────────────────────────────┴─> fit at a strength ─> scores ─> metric on validation
7 strengths, two decades apart, then four halvings around the best ─> 15 fits at most ─> the last on train + validation
```

`fit` minimises what scikit-learn's LogisticRegression does, `sum of cross-entropies + |weights|^2 / 2 C` with a bias
that is not penalised, by L-BFGS. It is faster because it turns the problem first: in the axes in which the features
vary, each scaled by how curved the loss is there, L-BFGS needs a tenth of the steps, and a fit starts where the nearest
strength ended. Most steps are in float32; the last ones, in float64, end where the largest entry of the gradient is
below `TOLERANCE`, which is where scikit-learn ends with `tol=1e-4 / n`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from limner.data.order import uniform
from limner.embed import require_finite
from limner.errors import DataError
from limner.evaluation.metrics import accuracy

TOLERANCE = 1e-4
"""The largest entry of the summed loss's gradient with which a fit ends."""
STEPS = 1000
"""Steps of a fit at most, in the paper."""
DECADES, PER_DECADE = (-6, 6), 8
HISTORY, POLISH = 20, 50
"""Steps that L-BFGS remembers, and those at the end without a line search."""
NOISE = 3e-6
"""A gradient's entry for each picture from which on float32 is not exact enough."""
CHUNK = 2**14
"""Rows of features that are computed with at once."""


@dataclass(frozen=True)
class Basis:
    """The mean of features, the axes in which they vary and how far."""

    mean: Float[Tensor, " embed"]
    axes: Float[Tensor, "embed embed"]
    """Orthonormal columns: float64."""
    variances: Float[Tensor, " embed"]

    @classmethod
    def of(cls, features: Float[Tensor, "images embed"]) -> "Basis":
        """The basis of `features`, which are gone through in chunks."""
        embed = features.shape[1]
        total, squares = torch.zeros(embed, dtype=torch.float64), torch.zeros(embed, embed, dtype=torch.float64)
        for chunk in _chunks(features, torch.float64):
            total += chunk.sum(dim=0)
            squares += chunk.T @ chunk
        mean = total / len(features)
        variances, axes = torch.linalg.eigh(squares / len(features) - torch.outer(mean, mean))
        return cls(mean, axes, variances.clamp(min=0))


@dataclass(frozen=True)
class Fit:
    """A linear classifier and how its fit ended."""

    weights: Float[Tensor, "classes embed"]
    """float64; of two classes one row, whose score is that of the second."""
    bias: Float[Tensor, " classes"]
    strength: float
    """C of scikit-learn: 1 / L2 penalty on the summed loss."""
    steps: int
    gradient: float
    """The largest entry of the gradient at the end."""

    @property
    def is_converged(self) -> bool:
        """Whether the gradient is as small as asked."""
        return self.gradient <= TOLERANCE

    def scores(self, features: Float[Tensor, "images embed"]) -> Float[Tensor, "images classes"]:
        """The logits of all classes: float64."""
        parts = [chunk @ self.weights.T + self.bias for chunk in _chunks(features, torch.float64)]
        found = torch.cat(parts) if parts else torch.empty(0, len(self.bias), dtype=torch.float64)
        return torch.cat([torch.zeros_like(found), found], dim=1) if len(self.bias) == 1 else found


def fit(
    features: Float[Tensor, "images embed"],
    labels: Int[Tensor, " images"],
    classes: int,
    strength: float,
    *,
    basis: Basis | None = None,
    start: Fit | None = None,
    steps: int = STEPS,
) -> Fit:
    """Logistic regression of `labels` in [0, classes) on `features`, at a `strength` (C); `start` is a fit nearby.

    Raises `DataError` for labels of one class alone, and `ModelError` for features that are not finite.
    """
    require_fit_for_probe(features, labels, classes)
    basis = basis or Basis.of(features)
    rows = 1 if classes == 2 else classes
    curvature = len(features) * _curvature(labels, classes)
    scale = 1 / torch.cat([curvature * basis.variances + 1 / strength, basis.mean.new_full((1,), curvature)]).sqrt()
    problem = _Problem(features, labels, rows, strength, basis, scale)
    x = torch.zeros(rows, len(basis.mean) + 1, dtype=torch.float64)
    if start is None:
        x[:, -1] = _log_odds(labels, classes) / scale[-1]
    else:
        x[:, :-1] = (start.weights @ basis.axes) / scale[:-1]
        x[:, -1] = (start.bias + start.weights @ basis.mean) / scale[-1]
    x, gradient, taken = _minimised(problem, x, steps)
    return Fit(*problem.classifier(x), strength, taken, gradient)


def require_fit_for_probe(features: Tensor, labels: Tensor, classes: int) -> None:
    """Raise an error for features or labels that no probe can be fitted to."""
    require_finite("The features for the linear probe", features)
    found = labels.unique()
    if len(found) < 2 or int(found.min()) < 0 or int(found.max()) >= classes:
        got = f"those of class {int(found[0])} alone" if len(found) == 1 else f"labels {found[:5].tolist()}"
        raise DataError(
            "The pictures for the linear probe",
            must=f"be of two classes or more, of {classes}",
            got=got if len(found) else "none",
            then="Give training pictures of each class.",
        )


def _chunks(features: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    return (features[start : start + CHUNK].to(dtype) for start in range(0, len(features), CHUNK))


def _curvature(labels: Tensor, classes: int) -> float:
    """About how curved the loss is in a class's score before anything is learnt: p (1 - p), on average over classes."""
    shares = labels.bincount(minlength=classes).double() / len(labels)
    return float((shares * (1 - shares)).mean())


def _log_odds(labels: Tensor, classes: int) -> Tensor:
    """The biases of a classifier that knows only how often each class comes; of those that never come, as if once."""
    logs = labels.bincount(minlength=classes).clamp(min=1).double().log()
    return logs[1:] - logs[:1] if classes == 2 else logs - logs.mean()


@dataclass(frozen=True)
class _Problem:
    """The loss in turned and scaled coordinates: of x * scale, all columns but the last, @ axes', are the weights, the
    last one is the bias at the mean of the features."""

    features: Float[Tensor, "images embed"]
    labels: Int[Tensor, " images"]
    rows: int
    strength: float
    basis: Basis
    scale: Float[Tensor, " coordinates"]

    def classifier(self, x: Float[Tensor, "rows coordinates"]) -> tuple[Tensor, Tensor]:
        """The weights [rows embed] and biases [rows] that x stands for."""
        scaled = x * self.scale
        weights = scaled[:, :-1] @ self.basis.axes.T
        return weights, scaled[:, -1] - weights @ self.basis.mean

    def at(self, x: Float[Tensor, "rows coordinates"], dtype: torch.dtype) -> tuple[float, Tensor, float]:
        """(loss, its gradient in x, the largest entry of its gradient in weights and bias), computed in `dtype`."""
        weights, bias = self.classifier(x)
        loss = float(weights.square().sum()) / (2 * self.strength)
        by_weights, by_bias = weights / self.strength, torch.zeros_like(bias)
        turned, moved = weights.T.to(dtype), bias.to(dtype)
        for start, chunk in zip(range(0, len(self.features), CHUNK), _chunks(self.features, dtype), strict=False):
            part, by_logits = _cross_entropy(torch.addmm(moved, chunk, turned), self.labels[start : start + CHUNK])
            loss += part
            by_weights += by_logits.T @ chunk
            by_bias += by_logits.sum(dim=0)
        largest = max(float(by_weights.abs().max()), float(by_bias.abs().max()))
        turned_back = (by_weights - torch.outer(by_bias, self.basis.mean)) @ self.basis.axes
        return loss, torch.cat([turned_back, by_bias[:, None]], dim=1) * self.scale, largest


def _cross_entropy(logits: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    """(the summed cross-entropy, its gradient); of one column of logits, those of the second of two classes."""
    if logits.shape[1] == 1:
        right = labels[:, None].to(logits.dtype)
        loss = F.binary_cross_entropy_with_logits(logits, right, reduction="none").sum(dtype=torch.float64)
        return float(loss), logits.sigmoid_().sub_(right)
    logs = F.log_softmax(logits, dim=1)
    loss = -logs.gather(1, labels[:, None]).sum(dtype=torch.float64)
    by_logits = logs.exp_()
    by_logits[torch.arange(len(labels)), labels] -= 1
    return float(loss), by_logits


class _Found(Exception):
    """The search came to a point where the gradient is small enough."""


def _minimised(problem: _Problem, x: Tensor, steps: int) -> tuple[Tensor, float, int]:
    """(where the loss is smallest, the largest entry of its gradient there, the number of times that it was asked for).

    float32 tells the way as long as the gradient is well above its noise. Where losses differ by less than float64 can
    tell, a line search finds nothing more, and the last steps go by the gradient alone.
    """
    point, dtype, largest, asked = x.clone().requires_grad_(), torch.float32, float("inf"), 0
    noise = NOISE * len(problem.features)

    def closure() -> float:
        nonlocal dtype, largest, asked
        loss, point.grad, largest = problem.at(point.detach(), dtype)
        asked += 1
        if dtype == torch.float32 and largest < noise:
            dtype = torch.float64
        elif largest <= TOLERANCE:
            raise _Found
        return loss

    for precision, line_search in (
        (torch.float32, "strong_wolfe"),
        *[(torch.float64, "strong_wolfe")] * 2,
        (torch.float64, None),
    ):
        dtype = torch.float64 if precision == torch.float64 else dtype
        left = steps - asked if line_search else min(POLISH, steps - asked)
        if left <= 0:
            break
        before = point.detach().clone(), largest
        search = torch.optim.LBFGS(
            [point],
            max_iter=left,
            max_eval=left,
            history_size=HISTORY,
            tolerance_grad=0,
            tolerance_change=1e-12 if line_search else 0,
            line_search_fn=line_search,
        )
        try:
            search.step(closure)
        except _Found:
            break
        if line_search is None and not largest < before[1]:
            return *before, asked
    return point.detach(), largest, asked


# --- the strength ----------------------------------------------------------------------------------------------------


def search_strength(try_strength: Callable[[float], float]) -> tuple[float, dict[float, float]]:
    """(the best strength, the value of each that was tried), by the paper's parametric binary search.

    C in {1e-6, 1e-4, ..., 1e6} first, then the two at a distance of 1, 1/2, 1/4 and 1/8 of a decade around the best.
    `try_strength` gives a value, higher ones are better; of equal values the smallest C, the strongest penalty, wins.
    """
    low, high = (PER_DECADE * decade for decade in DECADES)
    values = dict[int, float]()

    def best() -> int:
        return min(values, key=lambda place: (-values[place], place))

    for place in range(low, high + 1, 2 * PER_DECADE):
        values[place] = try_strength(10 ** (place / PER_DECADE))
    for distance in (8, 4, 2, 1):
        middle = best()
        for place in (middle - distance, middle + distance):
            if low <= place <= high and place not in values:
                values[place] = try_strength(10 ** (place / PER_DECADE))
    return 10 ** (best() / PER_DECADE), {10 ** (place / PER_DECADE): value for place, value in sorted(values.items())}


@dataclass(frozen=True)
class Probe:
    """What a sweep found: the last fit, and what each strength gave on the validation images."""

    last: Fit
    values: dict[float, float]


def probe(
    train: tuple[Float[Tensor, "images embed"], Int[Tensor, " images"]],
    validation: tuple[Float[Tensor, "others embed"], Int[Tensor, " others"]],
    classes: int,
    metric: Callable[[Any, Any], float],
) -> Probe:
    """The linear probe of the paper: the strength by `metric(scores, labels)` on `validation`, the last fit on both."""
    (features, labels), (held, right) = train, validation
    if len(held) == 0:
        raise DataError(
            "The validation pictures of the linear probe",
            must="be one or more",
            got="none",
            then="Give a val folder, or more pictures.",
        )
    basis, fits = Basis.of(features), dict[float, Fit]()

    def nearest(strength: float) -> Fit | None:
        return min(fits.values(), key=lambda one: abs(math.log(one.strength / strength)), default=None)

    def try_strength(strength: float) -> float:
        fits[strength] = fit(features, labels, classes, strength, basis=basis, start=nearest(strength))
        return metric(fits[strength].scores(held), right)

    strength, values = search_strength(try_strength)
    both = torch.cat([features, held]), torch.cat([labels, right])
    return Probe(fit(*both, classes, strength, start=fits[strength]), values)


def best_accuracy(scores: Float[Tensor, "images classes"], labels: Int[Tensor, " images"]) -> float:
    """The share of images whose label has the highest score, of equal ones the first."""
    return accuracy(scores.argmax(dim=1), labels)


def held_out(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which images are held out: about `share` of each class, one at least, never all; the same for the same labels."""
    order = uniform(seed, "probe", 0, np.arange(len(labels), dtype=np.uint64))
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        count = min(max(1, int(share * len(own))), len(own) - 1)
        held[own[np.argsort(order[own], kind="stable")[:count]]] = True
    return held
