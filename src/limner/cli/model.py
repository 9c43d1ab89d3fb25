"""The verbs about models: `limner models`, `limner convert`, `limner doctor`."""

from dataclasses import asdict
from pathlib import Path
from typing import Literal

from limner.cli.show import print_json, print_table
from limner.errors import ReproductionError
from limner.progress import say, track


def models(*, json: bool = False) -> None:
    """List the models that have a name: parameters, work, resolution, memory.

    GFLOPs are two for each multiplication and addition; captions have 77 tokens.

    Args:
        json: print JSON.
    """
    from limner.architecture import ZOO
    from limner.model.size import size_of

    sizes = {name: size_of(shape) for name, shape in track(ZOO.items(), title="Counting", total=len(ZOO))}
    if json:
        print_json({name: {"parameters": s.parameters, **asdict(s)} for name, s in sizes.items()})
        return
    print_table(
        (
            "\nmodel",
            "\nparameters",
            "image\nM",
            "text\nM",
            "image\nGFLOPs",
            "text\nGFLOPs",
            "\npixels",
            "\nembed",
            "float32\nMB",
        ),
        [
            (
                name,
                f"{s.parameters:,}",
                f"{s.image_parameters / 1e6:.1f}",
                f"{s.text_parameters / 1e6:.1f}",
                f"{s.image_gflops:.2f}",
                f"{s.text_gflops:.2f}",
                str(s.image_size),
                str(s.embed_dim),
                f"{s.weight_mb:,.0f}",
            )
            for name, s in sizes.items()
        ],
    )


def convert(
    model: str,
    /,
    *,
    out: Path,
    activation: Literal["gelu", "quick_gelu"] | None = None,
    image_size: int | None = None,
    onnx: bool = False,
    int8: bool = False,
    allow_pickle: bool = False,
    trust: bool = False,
    json: bool = False,
) -> None:
    """Read anybody's CLIP; write it for limner, open_clip and transformers.

    transformers reads ViTs only.

    Args:
        model: a model directory of limner, transformers or open_clip, a run, a weight file, or hf-hub:org/name.
        out: the directory to write.
        activation: of a weight file that does not say: quick_gelu for OpenAI's own weights.
        image_size: resize the position embeddings for pictures of this many pixels.
        onnx: write OUT/onnx/vision_model.onnx and text_model.onnx too, compared with the model as they are written.
        int8: write them quantised to 8 bits as well; smaller and approximate: measure before you rely on it.
        allow_pickle: read .pt, .pth and .bin files, by torch's restricted unpickler.
        trust: open a TorchScript archive that is none of OpenAI's nine.
        json: print JSON.
    """
    from limner.store.store import load

    loaded = load(model, image_size=image_size, activation=activation, allow_pickle=allow_pickle, trust=trust)
    loaded.save(out, converted_from=model if model.startswith("hf-hub:") else Path(model).name)
    say(f"Wrote {out}, fingerprint {str(loaded.fingerprint)[:12]}. Check it anywhere with: limner doctor {out}")
    graphs = []
    if onnx or int8:
        from limner.store.onnx import export

        graphs = export(loaded, out, int8=int8)
    if json:
        onnx_files = [{**asdict(graph), "file": str(graph.file)} for graph in graphs]
        print_json({"written": str(out), "fingerprint": loaded.fingerprint, "onnx": onnx_files})
    elif graphs:
        print_table(
            ("file", "MB", "cosine to torch, at least", "largest difference"),
            [(str(g.file), f"{g.bytes / 1e6:.1f}", f"{g.cosine:.6f}", f"{g.max_abs_difference:.1e}") for g in graphs],
        )


def doctor(model: str, /, *, json: bool = False) -> None:
    """Say whether a model gives the same numbers here as where it was saved.

    Replays the golden vectors stored with it: preprocessing, tokens, features of both encoders.

    Args:
        model: a model directory or a finished run.
        json: print JSON.
    """
    from limner.store.doctor import examine

    checks = examine(model)
    if json:
        print_json([asdict(check) for check in checks])
    else:
        print_table(
            ("check", "wanted", "got", ""),
            [(c.what, c.wanted, c.got, "fine" if c.fine else "NOT REPRODUCED") for c in checks],
        )
    if not all(check.fine for check in checks):
        raise ReproductionError(
            f"The features of {model} on this machine",
            must="be those that it gave where it was saved",
            got=f"{sum(not check.fine for check in checks)} checks that differ",
            then="Take a checkpoint from before its weights overflowed."
            if any(check.what == "weights" and not check.fine for check in checks)
            else "Compare the versions of torch and Pillow; numbers of the two machines must not be mixed.",
        )
