"""The verbs about pairs before they are trained on: `limner data ...` and `limner tokenizer train`."""

from dataclasses import asdict
from pathlib import Path
from typing import Literal

from limner.cli.show import print_json, print_table, print_values, shortened
from limner.errors import StorageError, TrainingError, require, whole_from_one
from limner.progress import say


def data_demo(*, source: Literal["emoji", "digits"] = "emoji", out: Path | None = None, json: bool = False) -> None:
    """Write the demo's pairs as shards: emoji in three styles, or digits.

    They are in OUT/train and OUT/test. A second call finds them whole and does nothing.

    Args:
        source: emoji (fetched with npm pack) or digits (scikit-learn's handwritten ones, no network).
        out: the folder; data/demo or data/digits by default.
        json: print JSON.
    """
    from limner.demo.pairs import default_folder, write_demo
    from limner.files import read_json

    folder = out or default_folder(source)
    write_demo(folder, source=source)
    if json:
        manifests = {part: read_json(folder / part / "manifest.json") for part in ("train", "test")}
        parts = {part: {name: about[name] for name in ("pairs", "fingerprint")} for part, about in manifests.items()}
        print_json({"written": str(folder), **parts})


def data_check(
    data: str,
    /,
    *,
    ranks: int = 1,
    workers: int | None = None,
    batch_size: int = 256,
    sample: int | None = None,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Find out what is wrong with pairs before they are trained on.

    Every caption and picture is read as training does; what was found is printed, and shown on a page.

    The exit code is 1 if training would stop.

    Args:
        data: the pairs, as limner train takes them.
        ranks: processes of the training.
        workers: threads that read and decode, on each rank and here; one per core by default.
        batch_size: pairs of a batch, over all ranks.
        sample: look at this many pairs only, drawn by chance.
        out: the page to write; ./NAME-check.html by default.
        json: print JSON.
    """
    from limner.curate.check import check
    from limner.report.check import default_file, write_sheet
    from limner.report.html import percent

    findings, source = check(data, ranks=ranks, workers=workers, batch_size=batch_size, sample=sample)
    if json:
        print_json(asdict(findings))
    else:
        print_table(
            ("", "found", "count", "share", "what to do"),
            [
                (f.severity, f.what, f"{f.count:,}", "" if f.share is None else percent(f.share), f.advice)
                for f in findings.findings
            ],
        )
        say("The first pairs as they were read:")
        print_table(
            ("key", "class", "captions"),
            [(first.key, first.label or "", shortened(" | ".join(first.captions))) for first in findings.first],
        )
    page = out or default_file(data)
    try:
        write_sheet(page, findings, source)
        examples = f"Examples are in {page}."
        say(f"Looked at {findings.checked:,} of {findings.pairs:,} pairs. Wrote {page}.")
    except StorageError as error:
        if out is not None:
            raise
        examples = "Give --out a file that can be written, for a page with examples."
        say(f"Looked at {findings.checked:,} of {findings.pairs:,} pairs. There is no page: {error}")
    errors = sum(f.severity == "error" for f in findings.findings)
    if errors:
        raise TrainingError(
            f"The pairs of {data}",
            must="be fit for training",
            got=f"{errors} error{'s' if errors > 1 else ''}",
            then=examples,
        )


def data_stats(data: str, /, *, json: bool = False) -> None:
    """Count pairs, captions and bytes without reading a picture.

    Args:
        data: the pairs, as limner train takes them.
        json: print JSON.
    """
    from limner.data.show import stats

    (print_json if json else print_values)(stats(data))


def data_show(data: str, key: str, /, *, out: Path | None = None, json: bool = False) -> None:
    """Show one pair, and write its picture to a file if you like.

    Args:
        data: the pairs, as limner train takes them.
        key: the pair's key, as limner or its shard names it.
        out: the file to write the picture to; without an ending it gets that of its format.
        json: print JSON.
    """
    from limner.data.show import describe_pair, find_pair
    from limner.files import write_bytes

    facts, content = describe_pair(find_pair(data, key))
    (print_json if json else print_values)(facts)
    if out is not None:
        file = out if out.suffix else out.with_name(f"{out.name}.{facts.get('format', 'bin').lower()}")
        write_bytes(file, content)
        say(f"Wrote {file}.")


def data_bench(
    data: str,
    /,
    *,
    image_size: int = 224,
    batch_size: int = 256,
    batches: int = 8,
    workers: int | None = None,
    json: bool = False,
) -> None:
    """Time the reading of pairs on this machine, stage by stage.

    The stages are reading, decoding, resizing, cropping, tokenising, and the loader that does all of it.

    Args:
        data: the pairs, as limner train takes them.
        image_size: pixels of the model's pictures.
        batch_size: pairs of a batch.
        batches: how many batches to load.
        workers: threads that read and decode; one per core by default.
        json: print JSON.
    """
    from limner.data.bench import bench
    from limner.data.sources.read import read_pairs

    pairs = read_pairs(data)
    stages = bench(pairs, image_size=image_size, batch_size=batch_size, batches=batches, workers=workers)
    if json:
        print_json([asdict(stage) for stage in stages])
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


def data_shard(data: str, /, *, out: Path, per_shard: int = 10_000, json: bool = False) -> None:
    """Pack pairs as WebDataset shards: the same pairs give the same bytes.

    The shards are in img2dataset's layout, the pictures as they are.

    Args:
        data: the pairs: a folder, a list, a datasets directory, shards, or several of these with :: between them.
        out: the folder to write; one of shards that limner wrote is replaced.
        per_shard: pairs in a shard.
        json: print JSON.
    """
    from limner.data.pairs import describe
    from limner.data.sources.read import read_pairs
    from limner.data.write import repack

    require(per_shard >= 1, "--per-shard", "be at least 1", per_shard, "Usual: 10,000.")
    pairs = read_pairs(data)
    skipped = repack(pairs, out, per_shard=per_shard) + pairs.skipped
    written = read_pairs(out)
    say(f"Wrote {len(written):,} pairs to {out} ({describe(skipped)}).")
    if json:
        facts = {"pairs": len(written), "fingerprint": written.fingerprint, "skipped": dict(skipped)}
        print_json({"written": str(out), **facts})
    else:
        print(f"{written.fingerprint}  {out}")


def tokenizer_train(data: str, /, *, out: Path, vocab_size: int = 4096, json: bool = False) -> None:
    """Train a tokenizer on the captions of your pairs.

    It is a lower-cased byte-level BPE, written as tokenizer.json.

    Args:
        data: the pairs, as limner train takes them.
        out: the file to write.
        vocab_size: at most this many tokens, 512 bytes and two special ones included.
        json: print JSON.
    """
    from limner.data.pairs import describe
    from limner.data.sources.read import read_pairs
    from limner.data.tokenizer import Tokenizer

    pairs = read_pairs(data)
    tokenizer = Tokenizer.train(pairs.captions(), vocab_size=vocab_size)
    tokenizer.save(out)
    say(f"Wrote {out}: {tokenizer.vocab_size} tokens from {len(pairs):,} pairs ({describe(pairs.skipped)}).")
    if json:
        facts = {"tokens": tokenizer.vocab_size, "pairs": len(pairs), "data": pairs.fingerprint}
        print_json({"written": str(out), **facts, "skipped": dict(pairs.skipped)})


def data_frames(videos: Path, /, *, out: Path, count: int = 1, json: bool = False) -> None:
    """Take the middle frame of each video, as the paper did.

    limner data frames VIDEOS --out FOLDER. Folders of classes stay what they are.

    Args:
        videos: a folder of videos, in folders of their classes.
        out: the folder to write pictures to.
        count: frames of each video, in the middle of so many equal parts.
        json: print JSON.
    """
    from limner.data.made import frames

    whole_from_one(count, "--count")
    read = frames(videos, out, count=count)
    if json:
        print_json({"videos": read, "out": str(out)})
    else:
        say(f"Frames of {read:,} videos are in {out}.")


def data_render(sentences: Path, /, *, out: Path, json: bool = False) -> None:
    """Write sentences as pictures, in black on white.

    limner data render SENTENCES --out FOLDER. So Rendered SST2 was made; each label becomes a folder.

    Args:
        sentences: a csv or tsv with a column of sentences and one of labels.
        out: the folder to write pictures to.
        json: print JSON.
    """
    from limner.data.made import render

    written = render(sentences, out)
    if json:
        print_json({"pictures": written, "out": str(out)})
    else:
        say(f"{written:,} pictures are in {out}.")
