"""The tasks that the paper measures its models on, as data: the standard library only.

"The paper" is Radford et al. 2021, arXiv 2103.00020v1. An `Entry` says of one task what it is measured by, which
pictures are measured, where a public copy is and what the paper's nine models reach. `TASKS` holds them by name,
`SUITES` the groups that they are in.

Not all of the paper's numbers could be compared with a text that quotes it. Those that could are "read", the others
are "recalled" and may be wrong (`Entry.how_known`): quote them as recalled, and hold no model to them alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from limner.errors import ConfigError, did_you_mean

Kind = Literal["classification", "multi-label", "action", "frames", "words", "retrieval", "geo"]
"""What is asked of each test item.

```
classification  the one class of a picture
multi-label     all of its classes
action          the class of a video, of which the middle frame is seen
frames          the class of a picture and of the video frames around it, all of which have to be right
words           which word of the picture's own short list it shows
retrieval       the captions of a picture, and the pictures of a caption
geo             the place where it was taken
```
"""

Known = Literal["read", "recalled"]
"""How well a number of the paper is known: read in a text that quotes it, or only recalled."""

METRICS: dict[str, str] = {
    "top1": "the share of test items that are named right",
    "mean_per_class": "the mean, over the classes, of the share of their pictures that are named right",
    "mean_of_top1_and_top5": "the mean of top-1 and top-5 accuracy",
    "roc_auc": "the area under the ROC curve of the second class",
    "eleven_point_map": "mean average precision by the 11 points of PASCAL VOC 2007",
    "pm10": "the share of anchor frames that are named right together with every frame up to 10 before or after",
    "recall@1": "the share of queries whose first find is right, both ways",
    "mwap": "RareAct's mean weighted average precision",
    "shares_within_km": "the shares of pictures that are placed to within 1, 25, 200, 750 and 2,500 km",
}
"""What tasks are measured by."""

SUITES: dict[str, str] = {
    "paper": "All tasks of the paper.",
    "probe27": "The 27 data sets of the linear probe (Table 9; its results are Table 10, the zero-shot ones Table 11).",
    "zero-shot": "The 36 data sets that the paper averages zero-shot accuracy over (Figure 21): of the 27 not STL-10 "
    "and KITTI, and eleven more.",
    "retrieval": "Captions to pictures and back (Table 13).",
    "shifts": "The seven natural distribution shifts of ImageNet (Table 16).",
    "ocr": "Reading: digits, words and sentences in pictures (Table 14).",
    "action": "Actions in videos, by their middle frame (Table 15).",
    "geo": "Where a picture was taken (Table 17, and Country211 of Table 9).",
}
"""The groups of tasks, with what is in them."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is known of one task, before any picture of it is there."""

    name: str
    """What it is called here."""
    title: str
    """What the paper calls it."""
    kind: Kind = "classification"
    metric: str = "top1"
    """One of `METRICS`."""
    classes: int | None = None
    train: int | None = None
    validation: int | None = None
    """Pictures that a probe is fitted to, and those by which its strength is chosen; None: not given apart, or not
    needed. Where the paper's Table 9 counts both together, they are apart here."""
    test: int | None = None
    """Pictures that are measured; None: not known for sure."""
    split: str = ""
    """The rule by which the pictures are split; empty: the data set's own split."""
    copy: str = ""
    """The public copy on the Hugging Face hub; empty: `note` says why there is none."""
    licence: str = "not checked"
    """What it may be used for, in short. It is a hint: read the licence before you use the pictures."""
    suites: tuple[str, ...] = ("paper",)
    """The groups that it is in, names in `SUITES`."""
    reference: str = ""
    """The pictures with a known answer among which a picture's neighbours are looked up; empty: no task but a search
    by neighbours has any."""
    note: str = ""
    """What to know before a number of it is compared with somebody else's."""
    zero_shot: dict[str, float] = field(default_factory=dict)
    """The paper's zero-shot result of each model, in per cent of the metric (Tables 11 and 16)."""
    linear_probe: dict[str, float] = field(default_factory=dict)
    """The paper's linear probe, likewise (Tables 10 and 16)."""
    others: dict[str, float] = field(default_factory=dict)
    """Other results that the paper gives for its best model, ViT-L/14@336px, in per cent."""
    read: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The models whose "zero-shot", "linear-probe" and "other" numbers were read in a text that quotes the paper."""

    def how_known(self, protocol: Literal["zero-shot", "linear-probe", "other"], model: str = "") -> Known:
        """How well the paper's number of a model is known; no model: ViT-L/14@336px."""
        return "read" if (model or BEST) in self.read.get(protocol, ()) else "recalled"

    @property
    def known(self) -> Known:
        """How well the paper's numbers of this task are known, taken together: "read" if every one of them is."""
        given: dict[Any, list[str]] = {"zero-shot": [*self.zero_shot], "linear-probe": [*self.linear_probe]}
        given["other"] = [BEST] if self.others else []
        each = [self.how_known(protocol, model) for protocol, models in given.items() for model in models]
        return "read" if each and set(each) == {"read"} else "recalled"

    @property
    def aliases(self) -> tuple[str, ...]:
        """The names that a folder of it may have, its own first, then those of the public copy: with "wds_", without
        it, and without "vtab-"."""
        folder = self.copy.rpartition("/")[2]
        short = folder.removeprefix("wds_")
        names = (self.name, folder, short, short.removeprefix("vtab-"))
        return tuple(dict.fromkeys(name for name in names if name))


# --- the paper's numbers ---------------------------------------------------------------------------------------------

BEST = "ViT-L/14@336px"
"""The model that the paper means where it says CLIP and no more."""

HEADER = """
    food101 cifar10 cifar100 birdsnap sun397 cars aircraft voc2007 dtd pets caltech101 flowers mnist fer2013 stl10
    eurosat resisc45 gtsrb kitti country211 pcam ucf101 kinetics700 clevr hateful-memes sst2 imagenet
"""
COLUMNS = tuple(HEADER.split())
"""The columns of Tables 10 and 11."""

# One line a model, one number a column, as the paper prints them. Table 11:
ZERO_SHOT = """
RN50           81.1 75.6 41.6 32.6 59.6 55.8 19.3 82.1 41.7 85.4 82.1 65.9 66.6 42.2 94.3 41.1 54.2 35.2 42.2 16.1 57.6 63.6 43.5 20.3 59.7 56.9 59.6
RN101          83.9 81.0 49.0 37.2 59.9 62.3 19.5 82.4 43.9 86.2 85.1 65.7 59.3 45.6 96.7 33.1 58.5 38.3 33.3 16.9 55.2 62.2 46.7 28.1 61.1 64.2 62.2
RN50x4         86.8 79.2 48.9 41.6 62.7 67.9 24.6 83.0 49.3 88.1 86.0 68.0 75.2 51.1 96.4 35.0 59.2 35.7 26.0 20.2 57.5 65.5 49.0 17.0 58.3 66.6 65.8
RN50x16        90.5 82.2 54.2 45.9 65.0 72.3 30.3 82.9 52.8 89.7 87.6 71.9 80.0 56.0 97.8 40.3 64.4 39.6 33.9 24.0 62.5 68.7 53.4 17.6 58.9 67.6 70.5
RN50x64        91.8 86.8 61.3 48.9 66.9 76.0 35.6 83.8 53.4 93.4 90.6 77.3 90.8 61.0 98.3 59.4 69.7 47.9 33.2 29.6 65.0 74.1 56.8 27.5 62.1 70.7 73.6
ViT-B/32       84.4 91.3 65.1 37.8 63.2 59.4 21.2 83.1 44.5 87.0 87.9 66.7 51.9 47.3 97.2 49.4 60.3 32.2 39.4 17.8 58.4 64.5 47.8 24.8 57.6 59.6 63.2
ViT-B/16       89.2 91.6 68.7 39.1 65.2 65.6 27.1 83.9 46.0 88.9 89.3 70.4 56.0 52.7 98.2 54.1 65.5 43.3 44.0 23.3 48.1 69.8 52.4 23.4 61.7 59.8 68.6
ViT-L/14       92.9 96.2 77.9 48.3 67.7 77.3 36.1 84.1 55.3 93.5 92.6 78.7 87.2 57.5 99.3 59.9 71.6 50.3 23.1 32.7 58.8 76.2 60.3 24.3 63.3 64.0 75.3
ViT-L/14@336px 93.8 95.7 77.5 49.5 68.4 78.8 37.2 84.3 55.7 93.5 92.8 78.3 88.3 57.7 99.4 59.6 71.7 52.3 21.9 34.9 63.0 76.9 61.3 24.8 63.3 67.9 76.2
"""  # noqa: E501

# Table 10:
LINEAR_PROBE = """
RN50           86.4 88.7 70.3 56.4 73.3 78.3 49.1 87.1 76.4 88.2 89.6 96.1 98.3 64.2 96.6 95.2 87.5 82.4 70.2 25.3 82.7 81.6 57.2 53.6 65.7 72.6 73.3
RN101          88.9 91.1 73.5 58.6 75.1 84.0 50.7 88.0 76.3 91.0 92.0 96.4 98.4 65.2 98.2 95.9 89.3 82.4 73.6 26.6 82.8 84.0 60.3 50.3 68.2 73.3 75.7
RN50x4         91.3 90.5 73.0 65.7 77.0 85.9 57.3 88.4 79.5 91.9 92.5 97.8 98.5 68.1 98.1 96.4 89.7 85.5 59.4 30.3 83.0 85.7 62.6 52.5 68.0 76.6 78.2
RN50x16        93.3 92.2 74.9 72.8 79.2 88.7 62.7 89.0 79.1 93.5 93.7 98.3 98.9 68.7 98.6 97.0 91.4 89.0 69.2 34.8 83.5 88.0 66.3 53.8 71.1 80.0 81.5
RN50x64        94.8 94.1 78.6 77.2 81.1 90.5 67.7 88.9 82.0 94.5 95.4 98.9 98.9 71.3 99.1 97.1 92.8 90.2 69.2 40.7 83.7 89.5 69.1 55.0 75.0 81.2 83.6
ViT-B/32       88.8 95.1 80.5 58.5 76.6 81.8 52.0 87.7 76.5 90.0 93.0 96.9 99.0 69.2 98.3 97.0 90.5 85.3 66.2 27.8 83.9 85.5 61.7 52.1 66.7 70.8 76.1
ViT-B/16       92.8 96.2 83.1 67.8 78.4 86.7 59.5 89.2 79.2 93.1 94.7 98.1 99.0 69.5 99.0 97.1 92.7 86.6 67.8 33.3 83.5 88.4 66.1 57.1 70.3 75.5 80.2
ViT-L/14       95.2 98.0 87.5 77.0 81.8 90.9 69.4 89.6 82.1 95.1 96.5 99.2 99.2 72.2 99.7 98.2 94.1 92.5 64.7 42.9 85.8 91.5 72.0 57.8 76.2 80.8 83.9
ViT-L/14@336px 95.9 97.9 87.4 79.9 82.2 91.5 71.6 89.9 83.0 95.1 96.0 99.2 99.2 72.9 99.7 98.1 94.9 92.4 69.2 46.4 85.6 92.0 73.0 60.3 77.3 80.5 85.4
"""  # noqa: E501


def _columns(table: str) -> dict[str, dict[str, float]]:
    """The table by task and model. Raises `ValueError` for a line with more or fewer numbers than there are columns."""
    rows = [line.split() for line in table.strip().splitlines()]
    found: dict[str, dict[str, float]] = {name: {} for name in COLUMNS}
    for model, *numbers in rows:
        for name, number in zip(COLUMNS, numbers, strict=True):
            found[name][model] = float(number)
    return found


_ZERO_SHOT, _LINEAR_PROBE = _columns(ZERO_SHOT), _columns(LINEAR_PROBE)
_NINE = tuple(_ZERO_SHOT["imagenet"])

# What was read of the two tables in texts that quote them; all else is recalled.
_READ_ZERO_SHOT = {
    **dict.fromkeys(("food101", "cifar10", "cifar100", "sun397", "stl10", "imagenet"), _NINE),
    **dict.fromkeys(("pets", "mnist"), ("RN50", "ViT-B/32", BEST)),
    **dict.fromkeys(("hateful-memes", "sst2"), (BEST,)),  # Table 14
}
_READ_LINEAR_PROBE = {
    "sun397": _NINE,
    **dict.fromkeys(("mnist", "hateful-memes", "sst2"), (BEST,)),  # Table 14
    **dict.fromkeys(("ucf101", "kinetics700"), (BEST,)),  # Table 15
    "imagenet": (BEST,),  # Table 16
}


# --- the tasks -------------------------------------------------------------------------------------------------------

BOTH = ("paper", "probe27", "zero-shot")
"""Tasks of the 27 that the zero-shot average counts as well."""
ZERO = ("paper", "zero-shot")
SHIFT = ("paper", "zero-shot", "shifts")

RESEARCH = "research only"
VIDEOS = "the annotations CC BY 4.0, the videos YouTube's"
FLICKR = "Flickr's terms of use"


def _of_27(name: str, title: str, *, suites: tuple[str, ...] = BOTH, **facts: Any) -> Entry:
    """One of the 27, with its columns of the two tables."""
    read = {"zero-shot": _READ_ZERO_SHOT.get(name, ()), "linear-probe": _READ_LINEAR_PROBE.get(name, ()), "other": ()}
    if facts.get("others"):
        read["other"] = (BEST,)
    numbers: dict[str, Any] = {"zero_shot": _ZERO_SHOT[name], "linear_probe": _LINEAR_PROBE[name], "read": read}
    return Entry(name=name, title=title, suites=suites, **numbers, **facts)


def _best(zero_shot: float | None = None, linear_probe: float | None = None, **others: float) -> dict[str, Any]:
    """The numbers of ViT-L/14@336px alone, all of them read."""
    given = {"zero_shot": zero_shot, "linear_probe": linear_probe}
    numbers: dict[str, Any] = {table: {BEST: value} for table, value in given.items() if value is not None}
    read = {table.replace("_", "-"): (BEST,) for table in numbers}
    return {**numbers, "others": others, "read": {**read, "other": (BEST,) if others else ()}}


def _recalls(**found: tuple[float, float, float]) -> dict[str, float]:
    """Recall@1, 5 and 10 of text and image retrieval."""
    return {f"{way} recall@{k}": value for way, at in found.items() for k, value in zip((1, 5, 10), at, strict=True)}


# Sizes are Table 9's. Where the public copy is split in another way, the note says so.
_THE_27 = (
    _of_27(
        "food101",
        "Food-101",
        classes=101,
        train=75_750,
        test=25_250,
        copy="clip-benchmark/wds_food101",
        licence=RESEARCH,
        note="Table 9 prints 102 classes; there are 101.",
    ),
    _of_27(
        "cifar10",
        "CIFAR-10",
        classes=10,
        train=50_000,
        test=10_000,
        copy="clip-benchmark/wds_vtab-cifar10",
        licence="unknown",
    ),
    _of_27(
        "cifar100",
        "CIFAR-100",
        classes=100,
        train=50_000,
        test=10_000,
        copy="clip-benchmark/wds_vtab-cifar100",
        licence="unknown",
    ),
    _of_27(
        "birdsnap",
        "Birdsnap",
        classes=500,
        train=42_283,
        test=2_149,
        note="No copy: it is a list of addresses, most of which are dead, so nobody has the paper's pictures today.",
    ),
    _of_27(
        "sun397",
        "SUN397",
        classes=397,
        train=19_850,
        test=19_850,
        split="50 training and 50 test pictures of each class: one of the ten official partitions.",
        copy="clip-benchmark/wds_sun397",
        note="CLIP_benchmark and DataComp measure all 108,754 pictures, not a partition's 19,850.",
    ),
    _of_27(
        "cars",
        "Stanford Cars",
        classes=196,
        train=8_144,
        test=8_041,
        copy="clip-benchmark/wds_cars",
    ),
    _of_27(
        "aircraft",
        "FGVC Aircraft",
        metric="mean_per_class",
        classes=100,
        train=3_334,
        validation=3_333,
        test=3_333,
        copy="clip-benchmark/wds_fgvc_aircraft",
        licence=RESEARCH,
        note="The classes are the 100 variants. Table 9's 6,667 training pictures are train and validation together.",
    ),
    _of_27(
        "voc2007",
        "Pascal VOC 2007 Classification",
        kind="multi-label",
        metric="eleven_point_map",
        classes=20,
        train=2_501,
        validation=2_510,
        test=4_952,
        copy="clip-benchmark/wds_voc2007_multilabel",
        licence=FLICKR,
        note="Scores are a softmax over the classes, and without it the numbers differ. Table 9's 5,011 training "
        "pictures are train and validation together. The copy wds_voc2007 is another task: 14,976 cropped objects, "
        "top-1.",
    ),
    _of_27(
        "dtd",
        "Describable Textures",
        classes=47,
        train=1_880,
        validation=1_880,
        test=1_880,
        split="One of the ten official partitions.",
        copy="clip-benchmark/wds_vtab-dtd",
        licence=RESEARCH,
        note="Table 9's 3,760 training pictures are train and validation together.",
    ),
    _of_27(
        "pets",
        "Oxford-IIIT Pets",
        metric="mean_per_class",
        classes=37,
        train=3_680,
        test=3_669,
        copy="clip-benchmark/wds_vtab-pets",
        licence="CC BY-SA 4.0",
        note="OpenAI's list of names has the 12 cats first, the data set's numbers are alphabetical: match classes by "
        "name, or 87% becomes 10%.",
    ),
    _of_27(
        "caltech101",
        "Caltech-101",
        metric="mean_per_class",
        classes=102,
        train=3_060,
        test=6_085,
        split="30 pictures of each class for training, all others are measured.",
        copy="clip-benchmark/wds_vtab-caltech101",
        note="It has no split of its own, and which 30 pictures the paper took is not known here. One of the 102 "
        "classes is the background. OpenAI's list of names is in another order than the folders.",
    ),
    _of_27(
        "flowers",
        "Oxford Flowers 102",
        metric="mean_per_class",
        classes=102,
        train=1_020,
        validation=1_020,
        test=6_149,
        copy="clip-benchmark/wds_vtab-flowers",
        note="Table 9's 2,040 training pictures are train and validation together.",
    ),
    _of_27(
        "mnist",
        "MNIST",
        suites=(*BOTH, "ocr"),
        classes=10,
        train=60_000,
        test=10_000,
        copy="clip-benchmark/wds_mnist",
        note="Table 14 prints 88.4 zero-shot where Table 11 has 88.3.",
    ),
    _of_27(
        "fer2013",
        "Facial Emotion Recognition 2013",
        classes=7,
        train=32_140,
        test=3_574,
        copy="clip-benchmark/wds_fer2013",
        note="A class has several names, whose prompts are all averaged. Table 9 has these counts, and 8 classes where "
        "the published prompts have 7 classes and the original 7 classes with 28,709 + 3,589 + 3,589 pictures.",
    ),
    _of_27(
        "stl10",
        "STL-10",
        suites=("paper", "probe27"),
        classes=10,
        train=1_000,
        test=8_000,
        split="Ten official folds of 1,000 training pictures each.",
        copy="clip-benchmark/wds_stl10",
        note="A probe's result is the mean over the ten folds. Figure 21 leaves it out of the zero-shot average.",
    ),
    _of_27(
        "eurosat",
        "EuroSAT",
        classes=10,
        train=10_000,
        test=5_000,
        split="Of each class, in sorted order, the first 1,000 pictures for training and the next 500 to measure.",
        copy="clip-benchmark/wds_vtab-eurosat",
        licence="MIT",
        note="The copy is split in another way, as VTAB does: it measures 5,400 pictures. OpenAI's list of names is "
        "not in the order of the folders.",
    ),
    _of_27(
        "resisc45",
        "RESISC45",
        classes=45,
        train=3_150,
        validation=3_150,
        test=25_200,
        split="10% for training, 10% for validation, 80% are measured.",
        copy="clip-benchmark/wds_vtab-resisc45",
        licence="unknown",
        note="Table 9's 3,150 are the training pictures alone. The copy is split in another way, as VTAB does: it "
        "measures 6,300 pictures.",
    ),
    _of_27(
        "gtsrb",
        "GTSRB",
        classes=43,
        train=26_640,
        test=12_630,
        copy="clip-benchmark/wds_gtsrb",
        note="The names of the 43 signs are in OpenAI's list only, not in the data set.",
    ),
    _of_27(
        "kitti",
        "KITTI Distance",
        suites=("paper", "probe27"),
        classes=4,
        train=6_347,
        validation=423,
        test=711,
        copy="clip-benchmark/wds_vtab-kitti_closest_vehicle_distance",
        licence="CC BY-NC-SA 3.0",
        note="The labels are made from KITTI's boxes, as VTAB does: the nearest car, van or truck is less than 8 m "
        "away, 8 to 20 m, more than 20 m, or there is none, in this order. The prompts are four whole sentences. Table "
        "9's 6,770 training pictures are train and validation together. Figure 21 leaves it out of the zero-shot "
        "average.",
    ),
    _of_27(
        "country211",
        "Country211",
        suites=(*BOTH, "geo"),
        classes=211,
        train=31_650,
        validation=10_550,
        test=21_100,
        copy="clip-benchmark/wds_country211",
        licence="the pictures' own Creative Commons licences (YFCC100M)",
        note="Of each country 150 pictures for training, 50 for validation, 100 to measure. Table 9 prints 43,200 "
        "training pictures; 211 x 200 are 42,200.",
    ),
    _of_27(
        "pcam",
        "PatchCamelyon",
        classes=2,
        train=262_144,
        validation=32_768,
        test=32_768,
        copy="clip-benchmark/wds_vtab-pcam",
        licence="CC0 1.0",
        note="Table 9's 294,912 training pictures are train and validation together.",
    ),
    _of_27(
        "ucf101",
        "UCF101",
        kind="action",
        suites=(*BOTH, "action"),
        classes=101,
        train=9_537,
        test=1_794,
        split="Three official splits into training and test videos.",
        licence="unknown",
        others={"zero-shot, Table 15": 80.3},
        note="No copy: its videos give their middle frame. The result is the mean over the three splits. Table 9 "
        "prints 1,794 test videos; the official first split has 9,537 and 3,783. Table 15 prints 80.3 zero-shot where "
        "Table 11 has 76.9, and the same linear probe.",
    ),
    _of_27(
        "kinetics700",
        "Kinetics-700",
        kind="action",
        suites=(*BOTH, "action"),
        metric="mean_of_top1_and_top5",
        classes=700,
        train=494_801,
        test=31_669,
        licence=VIDEOS,
        others={"zero-shot, Table 15": 69.6},
        note="No copy: its videos give their middle frame. They vanish, so the paper's counts are those of its day. "
        "Table 15 prints 69.6 zero-shot where Table 11 has 61.3, and the same linear probe.",
    ),
    _of_27(
        "clevr",
        "CLEVR Counts",
        classes=8,
        train=2_000,
        test=500,
        split="A sample of 2,000 training and 500 test pictures, which is not public.",
        copy="clip-benchmark/wds_vtab-clevr_count_all",
        licence="CC BY 4.0",
        note="Any sample but the paper's is another task, and so is the copy, which measures all 15,000 pictures. The "
        "classes are 3 to 10 objects; OpenAI's list of names begins with 10.",
    ),
    _of_27(
        "hateful-memes",
        "Hateful Memes",
        suites=(*BOTH, "ocr"),
        metric="roc_auc",
        classes=2,
        train=8_500,
        test=500,
        split="The 500 pictures of the dev set are measured.",
        licence="research only, after its own agreement is signed",
        note="No copy: its owner gives it out after an agreement is signed. The area is that of class 1, hateful.",
    ),
    _of_27(
        "sst2",
        "Rendered SST2",
        suites=(*BOTH, "ocr"),
        classes=2,
        train=6_920,
        validation=872,
        test=1_821,
        copy="clip-benchmark/wds_renderedsst2",
        note="Sentences in black on white, 448 x 448 pixels. Table 9's 7,792 training pictures are train and "
        "validation together.",
    ),
    _of_27(
        "imagenet",
        "ImageNet",
        classes=1_000,
        train=1_281_167,
        test=50_000,
        split="The validation set is measured, because the test set's labels are not public.",
        copy="clip-benchmark/wds_imagenet1k",
        licence=RESEARCH,
        note="The paper's list of names holds two names twice, missile and sunglasses: a class is its number. It has "
        "80 templates.",
    ),
)

_ON_SUBSET = "Set against ImageNet accuracy on the same classes alone, not on all 1,000."
_OWN_NAMES = "Its own class names, in place of ImageNet's, bring {} points of the zero-shot number."
_FRAMES = (
    "A class is several of ImageNet's, and scores what the best of them does. An anchor frame counts if every frame up "
    "to 10 before or after it is named right as well; zero_shot and linear_probe are this number, pm10."
)

_WITHIN = tuple(f"within {km} km" for km in (1, 25, 200, 750, 2500))

_MORE = (
    Entry(
        name="ayahoo",
        title="aYahoo",
        classes=12,
        suites=ZERO,
        note="No copy. Visual N-Grams, which the paper sets itself against in Table 1, reaches 72.4.",
        **_best(98.4),
    ),
    Entry(
        name="sun",
        title="SUN",
        suites=ZERO,
        note="No copy. The SUN of Visual N-Grams (Table 1), which reaches 23.0; SUN397 is a task of its own.",
        **_best(58.5),
    ),
    Entry(
        name="svhn",
        title="SVHN",
        suites=(*ZERO, "ocr"),
        classes=10,
        train=73_257,
        test=26_032,
        copy="clip-benchmark/wds_vtab-svhn",
        licence="no commercial use",
        note="There are 531,131 more training pictures, the extra ones.",
        **_best(51.0),
    ),
    Entry(
        name="imagenetv2",
        title="ImageNetV2",
        suites=SHIFT,
        classes=1_000,
        test=10_000,
        copy="clip-benchmark/wds_imagenetv2",
        note="The pictures of matched frequency. ViT-B/32 reaches 55.93 with the 80 templates (OpenAI's notebook).",
        **_best(70.1, 75.9),
    ),
    Entry(
        name="imagenet-a",
        title="ImageNet-A",
        suites=SHIFT,
        classes=200,
        test=7_500,
        copy="clip-benchmark/wds_imagenet-a",
        note=_ON_SUBSET,
        **_best(77.2, 75.3),
    ),
    Entry(
        name="imagenet-r",
        title="ImageNet-R",
        suites=SHIFT,
        classes=200,
        test=30_000,
        copy="clip-benchmark/wds_imagenet-r",
        note=_ON_SUBSET,
        **_best(88.9, 84.2),
    ),
    Entry(
        name="imagenet-sketch",
        title="ImageNet Sketch",
        suites=SHIFT,
        classes=1_000,
        test=50_889,
        copy="clip-benchmark/wds_imagenet_sketch",
        **_best(60.2, 57.4),
    ),
    Entry(
        name="imagenet-vid",
        title="ImageNet Vid",
        kind="frames",
        metric="pm10",
        suites=SHIFT,
        classes=30,
        licence=RESEARCH,
        note=f"No copy. {_FRAMES} {_OWN_NAMES.format(8.3)} {_ON_SUBSET}",
        **_best(89.2, 77.2, **{"zero-shot, anchors alone": 95.3, "linear probe, anchors alone": 89.1}),
    ),
    Entry(
        name="youtube-bb",
        title="YouTube-BB",
        kind="frames",
        metric="pm10",
        suites=SHIFT,
        note=f"No copy. {_FRAMES} {_OWN_NAMES.format(26.9)} {_ON_SUBSET}",
        **_best(88.5, 63.1, **{"zero-shot, anchors alone": 95.2, "linear probe, anchors alone": 68.7}),
    ),
    Entry(
        name="objectnet",
        title="ObjectNet",
        suites=SHIFT,
        classes=113,
        test=18_574,
        copy="clip-benchmark/wds_objectnet",
        licence="its own: never to train on",
        note="The 113 of its classes that ImageNet has; one may be several of ImageNet's. Cut 2 pixels off each side, "
        f"where there is a red border. {_OWN_NAMES.format(2.3)} {_ON_SUBSET}",
        **_best(72.3, 66.2),
    ),
    Entry(
        name="imagenet-blurry",
        title="ImageNet Blurry",
        suites=ZERO,
        note="No copy is known, and how it was made is not known here either, nor what the paper's models reach.",
    ),
    Entry(
        name="flickr30k",
        title="Flickr30k",
        kind="retrieval",
        metric="recall@1",
        suites=("paper", "retrieval"),
        test=1_000,
        split="Karpathy's test pictures.",
        copy="clip-benchmark/wds_flickr30k",
        licence=RESEARCH,
        note='Every caption is preceded by "a photo of", which adds 1 to 2 points of recall@1.',
        others=_recalls(text=(88.0, 98.7, 99.4), image=(68.7, 90.6, 95.2)),
        read={"other": (BEST,)},
    ),
    Entry(
        name="mscoco",
        title="MSCOCO",
        kind="retrieval",
        metric="recall@1",
        suites=("paper", "retrieval"),
        test=5_000,
        split="Karpathy's test pictures, all 5,000.",
        copy="clip-benchmark/wds_mscoco_captions",
        licence="the captions CC BY 4.0, the pictures Flickr's terms of use",
        note='Every caption is preceded by "a photo of", which adds 1 to 2 points of recall@1.',
        others=_recalls(text=(58.4, 81.5, 88.1), image=(37.8, 62.4, 72.2)),
    ),
    Entry(
        name="iiit5k",
        title="IIIT5K",
        kind="words",
        suites=("paper", "ocr"),
        train=2_000,
        test=3_000,
        note="No copy. Each picture shows one word, chosen from the short list that comes with it, which is easier "
        "than free reading.",
        **_best(90.0),
    ),
    Entry(
        name="rareact",
        title="RareAct",
        kind="action",
        metric="mwap",
        suites=("paper", "action"),
        classes=149,
        test=7_607,
        note="No copy: its videos are YouTube's. Counts are clips and pairs of a verb and a noun. A clip of another "
        "action with the same verb or noun is a hard negative, and the clips of one video share one weight. RareAct's "
        "second metric draws one clip a video.",
        **_best(40.7),
    ),
    Entry(
        name="im2gps",
        title="IM2GPS",
        kind="geo",
        metric="shares_within_km",
        suites=("paper", "geo"),
        test=237,
        reference="About a million pictures with coordinates; the nearest one's place is the answer.",
        note="No copy. It is not zero-shot: the result is worth as much as the reference pictures, and which the "
        "paper had is not known here.",
        **_best(**dict(zip(_WITHIN, (13.9, 32.9, 43.0, 62.0, 79.3), strict=True))),
    ),
)

TASKS: dict[str, Entry] = {entry.name: entry for entry in (*_THE_27, *_MORE)}
"""All tasks by name: the 27 in the order of Tables 10 and 11, then the others."""


def tasks_of(suite: str | None = None, only: Sequence[str] = ()) -> list[Entry]:
    """The tasks of a suite in the registry's order, all of them without one; those that `only` names, if it does.

    A task may be called by any of its aliases. Raises `ConfigError` for a suite or a task that is unknown, and for a
    task that is not in the suite.
    """
    if suite is not None and suite not in SUITES:
        raise ConfigError(
            "The suite",
            must=f"be one of {', '.join(SUITES)}",
            got=repr(suite),
            then=did_you_mean(suite, SUITES, "Or leave it out for all tasks."),
        )
    there = [entry for entry in TASKS.values() if suite is None or suite in entry.suites]
    asked = [_called(name).name for name in only]
    outside = [name for name in asked if name not in {entry.name for entry in there}]
    if outside:
        raise ConfigError(
            "The task",
            must=f"be one of the suite {suite}: {', '.join(entry.name for entry in there)}",
            got=repr(outside[0]),
            then=f"It is in {', '.join(TASKS[outside[0]].suites)}.",
        )
    return [entry for entry in there if not asked or entry.name in asked]


def _called(name: str) -> Entry:
    """The task of this name or alias."""
    for entry in TASKS.values():
        if name in entry.aliases:
            return entry
    raise ConfigError(
        "The task",
        must=f"be one of the registry's {len(TASKS)}",
        got=repr(name),
        then=did_you_mean(name, TASKS, f"They are {', '.join(TASKS)}."),
    )


def place_in(root: Path, entry: Entry) -> Path | None:
    """The folder of a task in `root`, by the first of its aliases that there is; None: there is none.

    It is a folder of `root` itself: a name that would lead elsewhere ("../food101") finds nothing. A link that
    somebody put into `root` is followed, because data often lies on another disk.
    """
    for alias in entry.aliases:
        place = root / alias
        if Path(alias).name == alias != ".." and place.is_dir():
            return place
    return None
