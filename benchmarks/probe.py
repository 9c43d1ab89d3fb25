"""The whole sweep of the linear probe beside scikit-learn's: the same grid, the same search, in the same run.

Features are made up: classes whose means lie apart in axes of falling spread, as the features of an encoder do.
scikit-learn minimises the mean loss, so its `tol` is 1e-4 / n for the paper's optimum; it starts each fit where the one
before ended (warm_start), limner where the nearest strength ended. Prints JSON.

python benchmarks/probe.py > benchmarks/results/probe.json      (four minutes on two idle cores)
"""

import json
import time
import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from limner.evaluation.probe import STEPS, TOLERANCE, best_accuracy, probe, search_strength

IMAGES, VALIDATION, WIDTH, CLASSES = 10_000, 2_000, 768, 100


def made_up(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """float32[images width] and the class of each."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, IMAGES + VALIDATION)
    spread = (1 + np.arange(WIDTH)) ** -0.5
    turned = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    means = 0.55 * rng.standard_normal((CLASSES, WIDTH)) * spread
    features = (means[labels] + rng.standard_normal((len(labels), WIDTH)) * spread) @ turned + rng.standard_normal(
        WIDTH
    )
    return torch.from_numpy(features.astype(np.float32)), torch.from_numpy(labels)


def main() -> None:
    features, labels = made_up(0)
    train, held = (features[:IMAGES], labels[:IMAGES]), (features[IMAGES:], labels[IMAGES:])
    begin = time.perf_counter()
    ours = probe(train, held, CLASSES, best_accuracy)
    seconds = time.perf_counter() - begin

    warnings.simplefilter("ignore", ConvergenceWarning)
    model = LogisticRegression(solver="lbfgs", max_iter=STEPS, tol=TOLERANCE / IMAGES, warm_start=True)
    steps = list[int]()

    def try_strength(strength: float) -> float:
        model.set_params(C=strength).fit(train[0].numpy(), train[1].numpy())
        steps.append(int(model.n_iter_.max()))
        return float(np.mean(model.predict(held[0].numpy()) == held[1].numpy()))

    begin = time.perf_counter()
    strength, values = search_strength(try_strength)
    both = np.concatenate([train[0], held[0]]), np.concatenate([train[1], held[1]])
    model.set_params(C=strength, tol=TOLERANCE / len(both[0])).fit(*both)
    theirs = time.perf_counter() - begin

    theirs_weights, theirs_bias = torch.from_numpy(model.coef_).double(), torch.from_numpy(model.intercept_).double()
    errors = torch.softmax(torch.from_numpy(both[0]).double() @ theirs_weights.T + theirs_bias, dim=1)
    errors[torch.arange(len(errors)), torch.from_numpy(both[1])] -= 1
    gradient = errors.T @ torch.from_numpy(both[0]).double() + theirs_weights / strength

    ours_last, theirs_last = ours.last.weights.numpy(), model.coef_
    centred = ours_last - ours_last.mean(axis=0) - (theirs_last - theirs_last.mean(axis=0))
    print(
        json.dumps(
            {
                "images": IMAGES,
                "width": WIDTH,
                "classes": CLASSES,
                "fits": len(values) + 1,
                "limner": {"seconds": seconds, "strength": ours.last.strength, "gradient": ours.last.gradient},
                "scikit-learn": {
                    "seconds": theirs,
                    "strength": strength,
                    "gradient": float(gradient.abs().max()),
                    "steps": steps,
                },
                "ratio": theirs / seconds,
                "same_strength": bool(np.isclose(ours.last.strength, strength)),
                "accuracies_apart": max(
                    abs(value - other) for value, other in zip(values.values(), ours.values.values(), strict=True)
                ),
                "weights_apart": float(np.abs(centred).max()),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
