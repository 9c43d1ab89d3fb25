"""The linear probe has scikit-learn's optimum, the paper's grid, and says what it cannot be fitted to."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import limner
from limner.errors import DataError, ModelError
from limner.evaluation.probe import TOLERANCE, Basis, Fit, best_accuracy, fit, held_out, probe, search_strength


def loss(weights: np.ndarray, bias: np.ndarray, features: np.ndarray, labels: np.ndarray, strength: float) -> float:
    """What both minimise, written out: the summed cross-entropy and |weights|^2 / 2 C."""
    logits = features @ weights.T + bias
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    most = logits.max(axis=1, keepdims=True)
    right = logits[np.arange(len(labels)), labels]
    crossed = (np.log(np.exp(logits - most).sum(axis=1)) + most[:, 0] - right).sum()
    return float(crossed + (weights**2).sum() / 2 / strength)


def real(name: str) -> tuple[np.ndarray, np.ndarray]:
    found = {"digits": load_digits, "wine": load_wine, "breast cancer": load_breast_cancer}[name](return_X_y=True)
    features, labels = found
    scale = 16.0 if name == "digits" else features.std(axis=0)
    return (features / scale).astype(np.float32), labels.astype(np.int64)


@pytest.mark.parametrize("name", ["digits", "wine", "breast cancer"])
@pytest.mark.parametrize("strength", [1e-6, 1e-2, 1.0, 1e3])
def test_the_optimum_is_that_of_scikit_learn(name: str, strength: float):
    features, labels = real(name)
    ours = fit(torch.from_numpy(features), torch.from_numpy(labels), int(labels.max()) + 1, strength)
    exact = features.astype(np.float64)
    theirs = LogisticRegression(C=strength, max_iter=20_000, tol=1e-4 / len(labels)).fit(exact, labels)
    assert ours.is_converged and ours.gradient <= TOLERANCE
    expected = loss(theirs.coef_, theirs.intercept_, exact, labels, strength)
    found = loss(ours.weights.numpy(), ours.bias.numpy(), exact, labels, strength)
    assert found <= expected * (1 + 1e-6)  # where the bottom is flat, scikit-learn stops up to a part in 600 above it
    assert strength > 1 or found == pytest.approx(expected, rel=1e-6)
    assert np.array_equal(ours.scores(torch.from_numpy(features)).argmax(dim=1).numpy(), theirs.predict(exact))


def test_a_start_and_a_basis_change_nothing_but_the_time():
    features, labels = map(torch.from_numpy, real("digits"))
    cold = fit(features, labels, 10, 10.0)
    warm = fit(features, labels, 10, 10.0, basis=Basis.of(features), start=fit(features, labels, 10, 1.0))
    assert warm.is_converged and torch.allclose(probabilities(cold, features), probabilities(warm, features), atol=1e-3)


def probabilities(one: Fit, features: torch.Tensor) -> torch.Tensor:
    return one.scores(features).softmax(dim=1)


def test_far_away_and_tiny_features_are_no_trouble():
    features, labels = real("wine")
    moved = torch.from_numpy(features).double() * 1e-3 + 100
    found = fit(moved, torch.from_numpy(labels), 3, 1e5)
    assert found.is_converged and best_accuracy(found.scores(moved), torch.from_numpy(labels)) > 0.95


def test_a_constant_feature_and_a_class_that_is_not_there_cost_nothing():
    features, labels = map(torch.from_numpy, real("wine"))
    constant = torch.cat([features, torch.full((len(features), 1), 3.0)], dim=1)
    one, other = fit(features, labels, 5, 1.0), fit(constant, labels, 5, 1.0)
    assert one.weights.shape == (5, 13) and other.is_converged
    assert torch.allclose(probabilities(one, features), probabilities(other, constant), atol=1e-3)
    assert bool((one.scores(features).argmax(dim=1) < 3).all())


def test_what_cannot_be_fitted_is_a_sentence():
    features, labels = map(torch.from_numpy, real("wine"))
    with pytest.raises(DataError, match=r"Got those of class 1 alone. Give training pictures of each class"):
        fit(features, torch.ones_like(labels), 3, 1.0)
    with pytest.raises(DataError, match="be of two classes or more, of 2"):
        fit(features, labels, 2, 1.0)
    with pytest.raises(ModelError, match="features for the linear probe must be finite"):
        fit(features * float("nan"), labels, 3, 1.0)
    with pytest.raises(DataError, match="validation pictures of the linear probe must be one or more"):
        probe((features, labels), (features[:0], labels[:0]), 3, best_accuracy)


# --- the strength ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("best", [-6.0, -5.875, -0.5, 0.0, 1.625, 6.0])
def test_the_search_finds_any_peak_of_the_grid_in_fifteen_fits(best: float):
    strength, values = search_strength(lambda c: -abs(math.log10(c) - best))
    assert math.log10(strength) == pytest.approx(best) and len(values) <= 15
    places = [math.log10(c) * 8 for c in values]
    assert places == pytest.approx([round(place) for place in places]) and -48 <= min(places) <= max(places) <= 48
    assert {round(place) for place in places} >= {-48, -32, -16, 0, 16, 32, 48}


def test_ties_go_to_the_stronger_penalty():
    assert search_strength(lambda _: 0.5)[0] == pytest.approx(1e-6)
    assert search_strength(lambda c: float(c > 0.02))[0] == pytest.approx(10**-1.625)  # the least of those that tie


def test_the_probe_chooses_on_validation_and_fits_on_both():
    features, labels = map(torch.from_numpy, real("digits"))
    found = probe((features[:400], labels[:400]), (features[400:600], labels[400:600]), 10, best_accuracy)
    assert found.values[found.last.strength] == max(found.values.values())
    again = fit(features[:600], labels[:600], 10, found.last.strength)
    same = found.last.scores(features).argmax(dim=1) == again.scores(features).argmax(dim=1)
    assert float(same.double().mean()) > 0.99
    assert best_accuracy(found.last.scores(features[600:]), labels[600:]) > 0.9


def test_images_are_held_out_of_each_class_but_never_all():
    labels = np.array([0] * 50 + [1] * 5 + [2])
    held = held_out(labels, 0.2, 0)
    assert [int(held[labels == label].sum()) for label in range(3)] == [10, 1, 0]
    assert np.array_equal(held, held_out(labels, 0.2, 0)) and not np.array_equal(held, held_out(labels, 0.2, 1))


# --- as an estimator -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [None, 1.0])
def test_scikit_learn_takes_it_for_one_of_its_own(strength: float | None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_estimator(limner.LinearProbe(strength))


def test_it_goes_into_pipelines_and_names_classes_as_they_are():
    features, labels = real("wine")
    names = np.array(["barolo", "grignolino", "barbera"])[labels]
    found = cross_val_score(make_pipeline(StandardScaler(), limner.LinearProbe()), features, names, cv=3)
    assert found.mean() > 0.9
    one = limner.LinearProbe().fit(features, names)
    assert set(one.predict(features)) == set(names) and one.values_[one.strength_] == max(one.values_.values())
    assert np.allclose(one.predict_proba(features).sum(axis=1), 1) and one.coef_.shape == (3, 13)


@pytest.mark.parametrize("labels", [["a"] * 10, [0.5] * 5 + [0.1] * 5])
def test_labels_that_are_none_are_its_kind_of_error(labels: Any):
    with pytest.raises(ValueError, match=r"two classes or more|Unknown label type"):
        limner.LinearProbe(1.0).fit(np.eye(10), labels)


@pytest.mark.parametrize("options", [{"strength": s} for s in (0, -1, math.nan, math.inf)] + [{"validation": 1.0}])
def test_options_that_fit_nothing_are_refused(options: dict[str, Any]):
    features, labels = load_wine(return_X_y=True)
    with pytest.raises(ValueError, match="LinearProbe must"):
        limner.LinearProbe(**options).fit(features, labels)
