"""The linear probe as a scikit-learn estimator: pipelines, cross-validation and check_estimator know it."""

from typing import Any

import numpy as np
import torch

from limner.errors import MissingExtra
from limner.evaluation.probe import best_accuracy, fit, held_out, probe

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError:
    raise MissingExtra("scikit-learn", extra="demo", needed_for="limner.LinearProbe") from None


class LinearProbe(ClassifierMixin, BaseEstimator):
    """Logistic regression on features by the paper's protocol (appendix A.3).

    Args:
        strength: C of scikit-learn's LogisticRegression; None: found by the paper's search, at most 15 fits, on
            pictures that are held out of each class, and then fitted once more with all of them.
        validation: the share of each class that is held out for the search.
        seed: which ones.

    Once fitted: `classes_`, `coef_` float64[classes features] (of two classes one row), `intercept_`, `strength_`,
    `n_iter_`, and `values_`: the accuracy on the held-out pictures of each strength that was tried.
    """

    def __init__(self, strength: Any = None, *, validation: Any = 0.2, seed: Any = 0) -> None:
        self.strength = strength
        self.validation = validation
        self.seed = seed

    def fit(self, X: Any, y: Any) -> "LinearProbe":
        """Fit to features float[images features] and labels [images] of any kind. Raises ValueError for others."""
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64], ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        features, labels = torch.from_numpy(np.ascontiguousarray(X)), torch.from_numpy(numbers)
        if len(self.classes_) < 2:
            raise ValueError(f"LinearProbe needs pictures of two classes or more, got one class: {self.classes_[0]!r}")
        if self.strength is not None and not (0 < self.strength < float("inf")):
            raise ValueError(f"The strength of LinearProbe must be above 0 and finite, or None. Got {self.strength!r}.")
        if not 0 < self.validation < 1:
            raise ValueError(f"The validation share of LinearProbe must lie in (0, 1). Got {self.validation!r}.")
        held = None if self.strength is not None else held_out(numbers, self.validation, self.seed)
        if held is None or not held.any():
            last, self.values_ = (
                fit(features, labels, len(self.classes_), 1.0 if self.strength is None else self.strength),
                {},
            )
        else:
            mask = torch.from_numpy(held)
            found = probe(
                (features[~mask], labels[~mask]), (features[mask], labels[mask]), len(self.classes_), best_accuracy
            )
            last, self.values_ = found.last, found.values
        self.coef_, self.intercept_ = last.weights.numpy(), last.bias.numpy()
        self.strength_, self.n_iter_ = last.strength, last.steps
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """The logits: float64[images classes]; of two classes float64[images], those of the second."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float32, np.float64], reset=False)
        scores = np.asarray(X, dtype=np.float64) @ self.coef_.T + self.intercept_
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probabilities: float64[images classes]."""
        scores = torch.from_numpy(self.decision_function(X))
        if scores.ndim == 1:
            scores = torch.stack([torch.zeros_like(scores), scores], dim=1)
        return scores.softmax(dim=1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The classes of the pictures."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)]
