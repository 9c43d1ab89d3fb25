"""The zero-shot classifier of 1,000 names in 80 templates, by the text encoder of ViT-B/32: seconds to make it, and to
take it from where it is kept; beside open_clip's, of a tenth of the names, in the same run. Weights are made up.

Run it in the environment of `make peers`. Prints JSON.

.peers/bin/python benchmarks/classifier.py > benchmarks/results/classifier.json      (ten minutes on two cores)
"""

import json
import tempfile
import time
from pathlib import Path

import open_clip  # pyright: ignore[reportMissingImports]  # in the environment of make peers
import torch

import limner
from limner.evaluation.zero_shot import classifier_weights

NAMES, TEMPLATES, SOME = 1000, 80, 100
ONE = ("red", "small", "wooden", "wild", "old", "striped", "northern", "spotted", "royal", "common")
TWO = ("fox", "chair", "owl", "boat", "tower", "lizard", "bowl", "bridge", "flute", "spider")
THREE = (
    "",
    " hound",
    " of the hills",
    " with a handle",
    " for the table",
    " in bloom",
    " toy",
    " net",
    " house",
    " cat",
)


def main() -> None:
    names = [f"{one} {two}{three}" for one in ONE for two in TWO for three in THREE]
    templates = [
        f"a {kind} of {article} {{}}{end}"
        for kind in ("photo", "sketch", "picture", "painting", "close-up")
        for article in ("a", "the", "one", "my")
        for end in (".", " here.", ", seen from the side.", " in a box.")
    ]
    assert (len(names), len(templates)) == (NAMES, TEMPLATES)
    model = limner.create("ViT-B/32").eval()
    with tempfile.TemporaryDirectory() as folder:
        seconds = []
        for _ in range(2):
            begin = time.perf_counter()
            limner.ZeroShotClassifier(model, names, templates, keep=Path(folder))
            seconds.append(time.perf_counter() - begin)
    prompts = [[template.replace("{}", name) for template in templates] for name in names[:SOME]]
    begin = time.perf_counter()
    classifier_weights(model, prompts)
    ours = time.perf_counter() - begin
    peer = open_clip.create_model("ViT-B-32-quickgelu").eval()
    tokenizer = open_clip.get_tokenizer("ViT-B-32-quickgelu")
    begin = time.perf_counter()
    open_clip.build_zero_shot_classifier(
        peer,
        tokenizer,
        names[:SOME],
        [lambda name, one=one: one.replace("{}", name) for one in templates],
        num_classes_per_batch=10,
        device="cpu",
    )
    theirs = time.perf_counter() - begin
    print(
        json.dumps(
            {
                "names": NAMES,
                "templates": TEMPLATES,
                "threads": torch.get_num_threads(),
                "seconds": seconds[0],
                "prompts_per_second": NAMES * TEMPLATES / seconds[0],
                "seconds_when_kept": seconds[1],
                f"of_{SOME}_names": {"limner": ours, "open_clip": theirs, "ratio": theirs / ours},
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
