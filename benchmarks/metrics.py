"""limner's numbers beside clip_benchmark's and scikit-learn's, from the same features; the memory of a large recall.

Run it where clip_benchmark can be imported: pip install --no-deps --target FOLDER clip_benchmark, then

PYTHONPATH=FOLDER python benchmarks/metrics.py MODEL LABELLED CAPTIONED > benchmarks/results/metrics.json
"""

import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from clip_benchmark.metrics import zeroshot_classification as peer  # pyright: ignore[reportMissingImports]
from clip_benchmark.metrics.zeroshot_retrieval import recall_at_k  # pyright: ignore[reportMissingImports]
from sklearn import metrics as sk

import limner
from limner.embed import embed_images, embed_texts, ids_of_texts
from limner.evaluation import metrics
from limner.evaluation.retrieval import _ranks_in_chunks
from limner.evaluation.suite import evaluate_task
from limner.evaluation.tasks import read_task
from limner.evaluation.zero_shot import ZeroShotClassifier

# its accuracy makes a number of an array of one entry, which numpy 2.4 refuses
peer.float = lambda value: float(np.asarray(value).item())  # type: ignore[attr-defined]


def classification(model: limner.CLIP, data: str) -> dict[str, dict[str, float]]:
    """Accuracies of a labelled task."""
    task = read_task(data)
    ours = {row.metric: row.value for row in evaluate_task(model, task).rows}
    embedded = embed_images(model, task.test.source)
    labels = torch.tensor([task.test.labels[index] for index in embedded.indices])
    scores = ZeroShotClassifier(model, task.classes.class_names, task.templates).scores(embedded.features)
    top1, top5 = peer.accuracy(scores, labels, topk=(1, 5))
    balanced = float(sk.balanced_accuracy_score(labels, scores.argmax(dim=1)))
    peers = {"zero_shot.top1": top1, "zero_shot.top5": top5, "zero_shot.mean_per_class": balanced}
    return {name: {"limner": ours[name], "clip_benchmark": value} for name, value in peers.items()}


def retrieval(model: limner.CLIP, data: str) -> dict[str, dict[str, float]]:
    """Recalls of captions that differ, both ways; clip_benchmark counts equal ones as wrong for each other."""
    task = read_task(data)
    embedded = embed_images(model, task.test.source)
    known, texts, of_image = set[int](), list[str](), list[int]()
    for place, pair in enumerate(embedded.pairs()):
        for caption, one in zip(pair.captions, ids_of_texts(model, pair.captions), strict=True):
            if one not in known:
                known.add(one)
                texts.append(caption)
                of_image.append(place)
    there = sorted(set(of_image))
    place_of = {image: place for place, image in enumerate(there)}
    images, sentences = embedded.features[there], embed_texts(model, texts)
    of_text: list[set[int]] = [{place_of[image]} for image in of_image]
    of_picture: list[set[int]] = [set() for _ in there]
    for text, image in enumerate(of_image):
        of_picture[place_of[image]].add(text)
    positive = torch.zeros(len(texts), len(there), dtype=torch.bool)
    positive[torch.arange(len(texts)), torch.tensor([place_of[image] for image in of_image])] = True
    found = {}
    for way, one, other, right, pairs in (
        ("text_to_image", sentences, images, of_text, positive),
        ("image_to_text", images, sentences, of_picture, positive.T),
    ):
        ranks = _ranks_in_chunks(one, other, right)
        for k in (1, 5, 10):
            theirs = float((recall_at_k(one @ other.T, pairs, k) > 0).double().mean())
            found[f"retrieval.{way}@{k}"] = {"limner": metrics.share_within(ranks, k), "clip_benchmark": theirs}
    return found


def on_random_scores() -> dict[str, dict[str, float]]:
    """Each metric that scikit-learn has, on scores with ties."""
    generator = torch.Generator().manual_seed(0)
    scores = (torch.randn(3000, 12, generator=generator) * 4).round() / 4
    labels = torch.randint(12, (3000,), generator=generator)
    named, is_first = scores.argmax(dim=1), labels == 0
    both = {
        "accuracy": (metrics.accuracy(named, labels), sk.accuracy_score(labels, named)),
        "mean_per_class": (metrics.mean_per_class(named, labels), sk.balanced_accuracy_score(labels, named)),
        "macro_f1": (metrics.macro_f1(named, labels), sk.f1_score(labels, named, average="macro")),
        "average_precision": (
            metrics.average_precision(scores[:, 0], is_first),
            sk.average_precision_score(is_first, scores[:, 0]),
        ),
        "roc_auc": (metrics.roc_auc(scores[:, 0], is_first), sk.roc_auc_score(is_first, scores[:, 0])),
    }
    return {name: {"limner": ours, "scikit-learn": float(theirs)} for name, (ours, theirs) in both.items()}


def large_recall() -> dict[str, float]:
    """31,000 captions and 5,000 images of 512 numbers, as of MSCOCO twice over."""
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(5000, 512, generator=generator), dim=1)
    texts = torch.nn.functional.normalize(torch.randn(31_000, 512, generator=generator), dim=1)
    right: Sequence[set[int]] = [{place % 5000} for place in range(31_000)]
    back: list[set[int]] = [set(range(place, 31_000, 5000)) for place in range(5000)]
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    _ranks_in_chunks(texts, images, right)
    _ranks_in_chunks(images, texts, back)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": time.perf_counter() - begin, "gb_of_the_process": peak / 1e6, "gb_before": before / 1e6}


def main() -> None:
    """Everything, as JSON."""
    model_at, labelled, captioned = sys.argv[1:]
    memory = large_recall()
    model = limner.load(model_at, device="cpu")
    told = {**classification(model, labelled), **retrieval(model, captioned), **on_random_scores()}
    apart = max(abs(a - b) for a, b in (one.values() for one in told.values()))
    print(
        json.dumps(
            {
                "tasks": [Path(labelled).name, Path(captioned).name],
                "largest_difference": apart,
                "recall": memory,
                **told,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
