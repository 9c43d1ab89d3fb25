"""The `limner` command: verbs only. Each verb imports what it needs when it is called, so that --help is instant.

Output for machines (`--json`) and results go to standard output, everything else to standard error. Exit codes: 0 fine,
1 failed, 2 bad input, 130 interrupted.
"""

import dataclasses
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from limner.config import DEFAULT_TEMPLATES
from limner.errors import ConfigError, LimnerError, ReproductionError, TrainingError, did_you_mean
from limner.progress import say, track


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command line and exit."""
    try:
        dispatch(list(sys.argv[1:] if argv is None else argv))
    except LimnerError as error:
        print(f"limner: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"limner: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("limner: interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def dispatch(args: list[str]) -> None:
    """Find the verb at the front of `args` and call it with the rest."""
    if args[:1] == ["--version"]:
        import limner

        print(f"limner {limner.__version__}")
        return
    for length in (2, 1):
        if verb := VERBS.get(" ".join(args[:length])):
            verb(args[length:])
            return
    if not args or args[0] in ("-h", "--help", "help"):
        print(overview())
        return
    group = [name for name in VERBS if name.startswith(f"{args[0]} ")]
    if group and (len(args) == 1 or args[1] in ("-h", "--help")):
        print("\n".join(f"  limner {name:<16} {summary(VERBS[name])}" for name in group))
        return
    asked = " ".join(args[: 2 if group else 1])
    raise ConfigError(
        "The command",
        must=f"be one of {', '.join(VERBS)}",
        got=repr(asked),
        then=did_you_mean(asked, VERBS, "See limner --help."),
    )


def overview() -> str:
    """What `limner --help` prints."""
    lines = ["limner: from captioned pictures to a model that names and finds pictures.", ""]
    lines += [f"  limner {name:<16} {summary(verb)}" for name, verb in VERBS.items()]
    lines += ["", "limner VERB --help explains a verb. New here? limner demo trains a model and shows what it can do."]
    return "\n".join(lines)


def summary(verb: Callable[..., Any]) -> str:
    """The first line of a verb's docstring."""
    return (inspect.getdoc(verb) or "").splitlines()[0]


def from_flags(function: Callable[..., Any], args: list[str], name: str, **options: Any) -> Any:
    """Call `function` with the flags in `args`; an unknown one ends with exit code 2 and names the nearest."""
    import tyro

    return tyro.cli(function, args=args, prog=f"limner {name}", **options)


def check_top(top: int) -> None:
    """Refuse a number of answers below one."""
    if top < 1:
        raise ConfigError("--top", must="be at least 1", got=top, then="Ask for one or more answers.")


def print_json(values: Any) -> None:
    """Results for machines."""
    print(json.dumps(values, indent=2, ensure_ascii=False))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Results for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:
        table.add_column(name, overflow="fold")  # a path is never shortened
    for row in rows:
        table.add_row(*row)
    Console(soft_wrap=True).print(table)


# --- verbs -----------------------------------------------------------------------------------------------------------


def demo_verb(args: list[str]) -> None:
    """Everything at once: fetch pictures, train, measure, classify, search, report."""

    def demo(source: Literal["emoji", "digits"] = "emoji", out: Path | None = None) -> None:
        """Fetch pictures with names, train a CLIP on them, measure it on pictures it never saw, write a report.

        Args:
            source: emoji (three drawing styles from npm packages, 5 minutes of training) or digits (no network).
            out: the run directory; runs/demo or runs/digits by default.
        """
        from limner.demo.tour import run_demo

        run_demo(source, out)

    from_flags(demo, args, "demo")


def data_demo_verb(args: list[str]) -> None:
    """Write the demo's pairs as shards: emoji in three styles, or handwritten digits."""

    def data_demo(source: Literal["emoji", "digits"] = "emoji", out: Path | None = None) -> None:
        """Write OUT/train and OUT/test as WebDataset shards; a second call finds them whole and does nothing.

        Args:
            source: emoji (fetched with npm pack) or digits (scikit-learn's, no network).
            out: the folder; data/demo or data/digits by default.
        """
        from limner.demo.pairs import default_folder, write_demo

        write_demo(out or default_folder(source), source=source)

    from_flags(data_demo, args, "data demo")


def data_check_verb(args: list[str]) -> None:
    """Say what training on pairs would meet, before it: limner data check PATH."""

    def data_check(
        path: str,
        /,
        *,
        ranks: int = 1,
        workers: int | None = None,
        batch_size: int = 256,
        sample: int | None = None,
        out: Path | None = None,
        json: bool = False,
    ) -> None:
        """Read every caption and picture as training does, say what is wrong with them, write a page to look at.

        Exit code 1 if training would stop.

        Args:
            path: the pairs, as limner train takes them.
            ranks: processes of the training.
            workers: threads that read and decode on each of them, and here; one per core by default.
            batch_size: pairs of a batch, over all ranks.
            sample: look at so many pairs only, drawn by chance.
            out: the page to write; ./NAME-check.html by default.
            json: print JSON.
        """
        from limner.curate.check import check
        from limner.report.check import default_file, write_sheet
        from limner.report.html import percent

        findings, source = check(path, ranks=ranks, workers=workers, batch_size=batch_size, sample=sample)
        page = write_sheet(out or default_file(path), findings, source)
        if json:
            print_json(dataclasses.asdict(findings))
        else:
            print_table(
                ("", "found", "count", "share", "what to do"),
                [
                    (f.severity, f.what, f"{f.count:,}", "" if f.share is None else percent(f.share), f.advice)
                    for f in findings.findings
                ],
            )
        say(f"Looked at {findings.checked:,} of {findings.pairs:,} pairs. Wrote {page}.")
        errors = sum(f.severity == "error" for f in findings.findings)
        if errors:
            raise TrainingError(
                f"The pairs of {path}",
                must="be fit for training",
                got=f"{errors} error{'s' if errors > 1 else ''}",
                then=f"Examples are in {page}.",
            )

    from_flags(data_check, args, "data check")


def data_stats_verb(args: list[str]) -> None:
    """Count pairs, captions and bytes without reading a picture."""

    def data_stats(path: str, /, *, json: bool = False) -> None:
        """Print what is known about pairs without their pictures: counts, lengths, bytes, fingerprint, order.

        Args:
            path: the pairs, as limner train takes them.
            json: print JSON.
        """
        from limner.data.show import stats

        print_values(stats(path), json=json)

    from_flags(data_stats, args, "data stats")


def data_show_verb(args: list[str]) -> None:
    """Show one pair: limner data show PATH KEY."""

    def data_show(path: str, key: str, /, *, out: Path | None = None, json: bool = False) -> None:
        """Print what is known about a pair by its key, and write its picture if you like.

        Args:
            path: the pairs, as limner train takes them.
            key: the pair's, as limner or its shard names it.
            out: the file to write the picture's bytes to; without an ending it gets that of the format.
            json: print JSON.
        """
        from limner.data.show import describe_pair, find_pair
        from limner.files import write_bytes

        told, content = describe_pair(find_pair(path, key))
        print_values(told, json=json)
        if out is not None:
            ending = "" if out.suffix else f".{told.get('format', 'bin').lower()}"
            write_bytes(out.with_name(out.name + ending), content)
            say(f"Wrote {out.with_name(out.name + ending)}.")

    from_flags(data_show, args, "data show")


def print_values(values: dict[str, Any], *, json: bool) -> None:
    """Named values, for machines or for people: several of one name below each other, what is not there left out."""
    if json:
        print_json(values)
        return

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{name} {text(number)}" for name, number in value.items())
        if isinstance(value, float):
            return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
        return f"{value:,}" if isinstance(value, int) else str(value)

    rows = []
    for name, value in values.items():
        several = value if isinstance(value, list) else [] if value in ({}, None) or value is False else [value]
        rows += [("" if i else name.replace("_", " "), text(one)) for i, one in enumerate(several)]
    print_table(("", ""), rows)


def data_bench_verb(args: list[str]) -> None:
    """Time the reading of pairs on this machine: pairs a second for each stage and core."""

    def data_bench(
        path: str,
        /,
        *,
        image_size: int = 224,
        batch_size: int = 256,
        batches: int = 8,
        workers: int | None = None,
        json: bool = False,
    ) -> None:
        """Time reading, decoding, resizing, cropping, tokenising, and the loader that does all of it.

        Args:
            path: the pairs, as limner train takes them.
            image_size: pixels of the model's pictures.
            batch_size: pairs of a batch.
            batches: how many batches to load.
            workers: threads that read and decode; one per core by default.
            json: print JSON.
        """
        from limner.data.bench import bench
        from limner.data.sources.read import read_pairs

        source = read_pairs(path)
        stages = bench(source, image_size=image_size, batch_size=batch_size, batches=batches, workers=workers)
        if json:
            print_json([dataclasses.asdict(stage) for stage in stages])
            return
        print_table(
            ("stage", "pairs", "core ms / pair", "pairs/s / core", "pairs/s"),
            [
                (
                    stage.stage,
                    f"{stage.pairs:,}",
                    f"{stage.cpu_ms_per_pair:.3f}",
                    f"{stage.pairs_per_second_per_core:,.0f}",
                    f"{stage.pairs_per_second:,.0f}",
                )
                for stage in stages
            ],
        )

    from_flags(data_bench, args, "data bench")


def data_shard_verb(args: list[str]) -> None:
    """Pack pairs as WebDataset shards: the same pairs give the same bytes."""

    def data_shard(source: str, out: Path, /, *, per_shard: int = 10_000) -> None:
        """Write any pairs that limner reads as tar shards in img2dataset's layout, pictures as they are.

        Args:
            source: the pairs: a folder, a list, a datasets directory, shards, or several with :: between them.
            out: the folder to write; one of shards that limner wrote is replaced.
            per_shard: pairs in a shard.
        """
        from limner.data.pairs import describe
        from limner.data.sources.read import read_pairs
        from limner.data.write import repack

        if per_shard < 1:
            raise ConfigError("--per-shard", must="be at least 1", got=per_shard, then="Usual: 10,000.")
        pairs = read_pairs(source)
        dropped = repack(pairs, out, per_shard=per_shard)
        written = read_pairs(out)
        say(f"Wrote {len(written):,} pairs to {out} ({describe(pairs.skipped + dropped)}).")
        print(f"{written.fingerprint}  {out}")

    from_flags(data_shard, args, "data shard")


def tokenizer_train_verb(args: list[str]) -> None:
    """Train a tokenizer on the captions of your pairs."""

    def tokenizer_train(data: Path, out: Path, vocab_size: int = 4096) -> None:
        """Learn a lower-cased byte-level BPE from captions and write it as tokenizer.json.

        Args:
            data: the pairs: a folder, a list or shards.
            out: the file to write.
            vocab_size: at most this many tokens, 512 bytes and two special ones included.
        """
        from limner.data.pairs import describe
        from limner.data.sources.read import read_pairs
        from limner.data.tokenizer import Tokenizer

        source = read_pairs(data)
        tokenizer = Tokenizer.train(source.captions(), vocab_size=vocab_size)
        tokenizer.save(out)
        say(f"Wrote {out}: {tokenizer.vocab_size} tokens from {len(source):,} pairs ({describe(source.skipped)}).")

    from_flags(tokenizer_train, args, "tokenizer train")


def train_verb(args: list[str]) -> None:
    """Train a CLIP: limner train RECIPE [--data PATH], or limner train --resume RUN."""
    from limner.recipes import RECIPES

    if args and args[0].split("=")[0] == "--resume":
        from_flags(resume_run, args, "train")
        return
    if not args or args[0] in ("-h", "--help"):
        print("limner train RECIPE [--data PATH] [--train.epochs 20] ...   starts a run in runs/RECIPE")
        print("limner train --resume RUN                                  continues one to the bit\n")
        print("\n".join(f"  {name:<12} {summary(recipe)}" for name, recipe in RECIPES.items()))
        print("\nlimner train RECIPE --help lists every setting with the recipe's value.")
        return
    name, *flags = args
    if name not in RECIPES:
        raise ConfigError(
            "The recipe",
            must=f"be one of {', '.join(RECIPES)}",
            got=repr(name),
            then=did_you_mean(name, RECIPES, "See limner train --help."),
        )
    from limner.config import RunConfig

    recipe = RECIPES[name]
    default = dataclasses.replace(recipe(), out=Path("runs") / name)
    config = from_flags(RunConfig, flags, f"train {name}", default=default, description=inspect.getdoc(recipe))

    from limner.training.loop import train

    say(f"The model is in {train(config) / 'model'}. Next: limner eval {config.out}")


def resume_run(resume: Path, other_data: bool = False, max_dropped: float | None = None) -> None:
    """Continue a run that was stopped.

    Args:
        resume: its run directory.
        other_data: go on although the training data is not what it was; without this such a run is refused.
        max_dropped: from now on, the share of pairs that may be unusable.
    """
    from limner.run import RunDirectory
    from limner.training.loop import train

    config = dataclasses.replace(RunDirectory(resume).read_config(), out=resume)
    if max_dropped is not None:
        config = dataclasses.replace(config, max_dropped=max_dropped)
    say(f"The model is in {train(config, resume=True, other_data=other_data) / 'model'}. Next: limner eval {resume}")


def eval_verb(args: list[str]) -> None:
    """Measure a run or a model: zero-shot accuracy and retrieval, with 95 % intervals."""

    def evaluate(model: Path, /, *, data: tuple[str, ...] = (), json: bool = False) -> None:
        """Measure zero-shot accuracy where pictures have labels, and recall both ways where they have captions.

        Args:
            model: a run, measured on its own test set, or a model directory.
            data: what to measure on instead: folders, lists or shards.
            json: print the rows as JSON.
        """
        from limner.evaluation.suite import evaluate_run

        rows = [row for evaluation in evaluate_run(model, data) for row in evaluation.rows]
        if json:
            print_json([dataclasses.asdict(row) for row in rows])
        else:
            print_table(
                ("task", "metric", "value", "95 % interval", "of"),
                [
                    (row.task, row.metric, f"{row.value:.1%}", f"{row.low:.1%} - {row.high:.1%}", f"{row.count:,}")
                    for row in rows
                ],
            )

    from_flags(evaluate, args, "eval")


def classify_verb(args: list[str]) -> None:
    """Name pictures: limner classify MODEL PICTURES... --labels "cat,dog"."""

    def classify(
        model: Path,
        pictures: list[Path],
        /,
        *,
        labels: str,
        template: tuple[str, ...] = DEFAULT_TEMPLATES,
        top: int = 5,
        json: bool = False,
    ) -> None:
        """Say which of the labels each picture shows, with percentages.

        Args:
            model: a model directory or a finished run.
            pictures: picture files, or folders, lists and shards of them.
            labels: the names to choose from, separated by commas.
            template: one or more sentences with {} where the name goes; their features are averaged.
            top: how many names to print for each picture.
            json: print JSON.
        """
        from limner.use.classify import classify_pictures

        check_top(top)
        names = [name.strip() for name in labels.split(",") if name.strip()]
        answers = classify_pictures(model, pictures, names, template, top=top)
        if json:
            print_json([dataclasses.asdict(answer) for answer in answers])
        else:
            print_table(
                ("picture", "names"),
                [(a.picture, "  ".join(f"{name} {share:.1%}" for name, share in a.names.items())) for a in answers],
            )

    from_flags(classify, args, "classify")


def search_verb(args: list[str]) -> None:
    """Find pictures: limner search MODEL FOLDER "a smiling cat"."""

    def search(model: Path, folder: Path, text: str, /, *, top: int = 10, json: bool = False) -> None:
        """Print the pictures that a sentence describes best.

        Args:
            model: a model directory or a finished run.
            folder: a folder of pictures, a list, or shards.
            text: the sentence.
            top: how many pictures to print.
            json: print JSON.
        """
        from limner.store.store import load
        from limner.use.search import find

        check_top(top)
        hits = find(load(model), folder, text, top=top)
        if json:
            print_json([dataclasses.asdict(hit) for hit in hits])
        else:
            print_table(
                ("similarity", "picture", "file"), [(f"{hit.similarity:.3f}", hit.key, hit.path) for hit in hits]
            )

    from_flags(search, args, "search")


def models_verb(args: list[str]) -> None:
    """List the architectures: parameters, work, resolution, memory."""

    def models(json: bool = False) -> None:
        """List the architectures that limner creates by name. GFLOPs are 2 x MAC, captions 77 tokens.

        Args:
            json: print JSON.
        """
        from limner.architecture import ZOO
        from limner.model.size import size_of

        sizes = {name: size_of(shape) for name, shape in track(ZOO.items(), title="Counting", total=len(ZOO))}
        if json:
            print_json({name: {"parameters": s.parameters, **dataclasses.asdict(s)} for name, s in sizes.items()})
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

    from_flags(models, args, "models")


def convert_verb(args: list[str]) -> None:
    """Make a model directory for limner, open_clip and transformers: limner convert MODEL OUT."""

    def convert(
        model: str,
        out: Path,
        /,
        *,
        activation: Literal["gelu", "quick_gelu"] | None = None,
        image_size: int | None = None,
        onnx: bool = False,
        int8: bool = False,
        allow_pickle: bool = False,
        trust: bool = False,
    ) -> None:
        """Read anybody's CLIP and write the directory that limner, open_clip and, for ViTs, transformers read.

        Args:
            model: a directory of limner, transformers or open_clip, a run, a weight file of OpenAI or open_clip, or
                hf-hub:org/name.
            out: the directory to write.
            activation: of a weight file that does not say: quick_gelu for OpenAI's own weights.
            image_size: resize the position embeddings for pictures of this many pixels.
            onnx: write OUT/onnx/vision_model.onnx and text_model.onnx too, compared with the model as they are written.
            int8: write them quantised to 8 bits as well; smaller and approximate: measure before you rely on it.
            allow_pickle: read .pt, .pth and .bin files, by torch's restricted unpickler.
            trust: open a TorchScript archive that is none of OpenAI's nine.
        """
        from limner.store.store import load

        loaded = load(model, image_size=image_size, activation=activation, allow_pickle=allow_pickle, trust=trust)
        loaded.save(out, converted_from=model if model.startswith("hf-hub:") else Path(model).name)
        say(f"Wrote {out}, fingerprint {str(loaded.fingerprint)[:12]}. Check it anywhere with: limner doctor {out}")
        if onnx or int8:
            from limner.store.onnx import export

            print_table(
                ("file", "MB", "cosine to torch, at least", "largest difference"),
                [
                    (str(e.file), f"{e.bytes / 1e6:.1f}", f"{e.cosine:.6f}", f"{e.max_abs_difference:.1e}")
                    for e in export(loaded, out, int8=int8)
                ],
            )

    from_flags(convert, args, "convert")


def doctor_verb(args: list[str]) -> None:
    """Say whether this machine gives the numbers that a model gave where it was saved."""

    def doctor(model: str, /, *, json: bool = False) -> None:
        """Replay the golden vectors stored with a model: preprocessing, tokens, features of both encoders.

        Args:
            model: a model directory or a finished run.
            json: print JSON.
        """
        from limner.store.doctor import examine

        checks = examine(model)
        if json:
            print_json([dataclasses.asdict(check) for check in checks])
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
                then="Compare the versions of torch and Pillow; numbers of the two machines must not be mixed.",
            )

    from_flags(doctor, args, "doctor")


def report_verb(args: list[str]) -> None:
    """Write RUN/report.html from what the run and limner eval left there."""

    def report(run: Path, /) -> None:
        """Write one self-contained page: the curve, the numbers, pictures with their names, a search grid.

        Args:
            run: a run directory that was evaluated.
        """
        from limner.report.run import write_report

        say(f"Wrote {write_report(run)}.")

    from_flags(report, args, "report")


VERBS: dict[str, Callable[[list[str]], None]] = {
    "demo": demo_verb,
    "data demo": data_demo_verb,
    "data check": data_check_verb,
    "data stats": data_stats_verb,
    "data show": data_show_verb,
    "data bench": data_bench_verb,
    "data shard": data_shard_verb,
    "tokenizer train": tokenizer_train_verb,
    "train": train_verb,
    "eval": eval_verb,
    "classify": classify_verb,
    "search": search_verb,
    "report": report_verb,
    "models": models_verb,
    "convert": convert_verb,
    "doctor": doctor_verb,
}
