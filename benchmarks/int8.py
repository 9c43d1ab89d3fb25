"""What ONNX and int8 cost in accuracy and gain in size and speed, on the pictures that a run was measured on, as JSON.

    python benchmarks/int8.py [RUN]

Without RUN the digits demo is trained first, in a folder that goes away. Accuracy is in percent; speed is images a
second through preprocessing's last step and the image encoder, medians of interleaved runs, as a ratio to torch.
"""

import json
import statistics
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

import onnxruntime
import torch

from limner.demo.tour import run_demo
from limner.evaluation.suite import evaluate_task
from limner.evaluation.tasks import own_task
from limner.model.clip import CLIP
from limner.run import RunDirectory
from limner.store.onnx import export, with_onnx
from limner.store.store import load

REPEATS = 5
IMAGES = 64


def percent(model: CLIP, run: RunDirectory) -> dict[str, float]:
    return {row.metric: 100 * row.value for row in evaluate_task(model, own_task(run)).rows}


@torch.inference_mode()
def images_per_second(model: CLIP) -> float:
    size = model.architecture.image_size
    pixels = torch.randint(0, 256, (IMAGES, 3, size, size), dtype=torch.uint8)
    start = time.perf_counter()
    model.encode_image(pixels)
    return IMAGES / (time.perf_counter() - start)


def measure(run: RunDirectory, folder: Path) -> dict[str, object]:
    model = load(run.path)
    exported = export(model, folder, int8=True)
    models = {"torch": model, "onnx": with_onnx(model, folder), "onnx_int8": with_onnx(model, folder, int8=True)}
    accuracy = {name: percent(one, run) for name, one in models.items()}
    speeds = [{name: images_per_second(one) for name, one in models.items()} for _ in range(REPEATS)]
    speed = {name: statistics.median(row[name] for row in speeds) for name in models}
    return {
        "graphs": [
            {"file": one.file.name, "bytes": one.bytes, "cosine": one.cosine, "difference": one.max_abs_difference}
            for one in exported
        ],
        "percent": accuracy,
        "drop_in_points": {
            name: {metric: accuracy["torch"][metric] - value for metric, value in found.items()}
            for name, found in accuracy.items()
        },
        "images_per_second": speed,
        "times_as_fast_as_torch": {name: value / speed["torch"] for name, value in speed.items()},
    }


def main() -> None:
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = Path(sys.argv[1]) if len(sys.argv) > 1 else folder / "digits"
        with redirect_stdout(sys.stderr):
            if len(sys.argv) == 1:
                run_demo("digits", path)
            found = measure(RunDirectory(path), folder)
    versions = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
    print(json.dumps({"run": path.name, "threads": torch.get_num_threads(), **versions, **found}, indent=2))


if __name__ == "__main__":
    main()
