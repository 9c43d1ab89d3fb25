"""The registry is whole, agrees with itself and with what the paper says elsewhere, and is asked by name."""

import subprocess
import sys
from pathlib import Path

import pytest

from limner.architecture import PAPER
from limner.errors import ConfigError
from limner.evaluation.registry import BEST, COLUMNS, METRICS, SUITES, TASKS, Entry, place_in, tasks_of

# Figure 5: zero-shot CLIP minus a linear probe on the features of a ResNet-50 that was trained on ImageNet.
OVER_RESNET = """
    cars +28.9  country211 +23.2  food101 +22.5  kinetics700 +14.5  sst2 +12.4  sun397 +7.8  ucf101 +7.7
    hateful-memes +6.7  cifar10 +3.9  cifar100 +3.0  stl10 +3.0  fer2013 +2.8  caltech101 +2.0  imagenet +1.9  pets +1.1
    voc2007 +0.5  birdsnap -3.2  mnist -10.0  aircraft -11.3  resisc45 -11.9  flowers -12.5  dtd -16.6  clevr -18.2
    gtsrb -18.4  pcam -19.5  kitti -34.0  eurosat -37.1
"""

# Table 10's row of that ResNet-50, as far as it could be recalled apart from the figure.
RESNET_50 = """
    food101 71.3  cifar10 91.8  cifar100 74.5  birdsnap 52.7  sun397 60.5  cars 49.9  aircraft 48.5  voc2007 83.8
    dtd 72.3  pets 92.4  caltech101 90.8  flowers 90.8  mnist 98.3  fer2013 54.9  imagenet 74.3
"""

SHIFTS = ["imagenetv2", "imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-vid", "youtube-bb", "objectnet"]


def numbers(text: str) -> dict[str, float]:
    words = text.split()
    return dict(zip(words[::2], map(float, words[1::2]), strict=True))


def names(entries: list[Entry]) -> list[str]:
    return [entry.name for entry in entries]


# --- what is in it ---------------------------------------------------------------------------------------------------


def test_suites():
    sizes = {suite: len(tasks_of(suite)) for suite in SUITES}
    assert sizes == {
        "paper": 43, "probe27": 27, "zero-shot": 36, "retrieval": 2, "shifts": 7, "ocr": 5, "action": 3, "geo": 2,
    }  # fmt: skip
    assert names(tasks_of("probe27")) == list(COLUMNS)
    assert names(tasks_of("shifts")) == SHIFTS
    assert names(tasks_of("ocr")) == ["mnist", "hateful-memes", "sst2", "svhn", "iiit5k"]
    assert names(tasks_of("action")) == ["ucf101", "kinetics700", "rareact"]
    assert names(tasks_of("geo")) == ["country211", "im2gps"]
    assert set(names(tasks_of("probe27"))) - set(names(tasks_of("zero-shot"))) == {"stl10", "kitti"}
    assert tasks_of() == tasks_of("paper") == list(TASKS.values())
    assert all(text.endswith(".") for text in SUITES.values())


@pytest.mark.parametrize("entry", TASKS.values(), ids=TASKS)
def test_every_entry_says_what_it_must(entry: Entry):
    assert TASKS[entry.name] is entry
    assert entry.metric in METRICS
    assert set(entry.suites) <= set(SUITES) and entry.suites[0] == "paper"
    assert entry.licence
    assert entry.copy.startswith("clip-benchmark/wds_") or entry.note.startswith("No copy")
    assert all(not text or text.endswith(".") for text in (entry.split, entry.note, entry.reference))
    assert all(0 < value <= 100 for value in [*entry.zero_shot.values(), *entry.linear_probe.values()])
    assert all(0 < value <= 100 for value in entry.others.values())
    assert set(entry.read) <= {"zero-shot", "linear-probe", "other"}
    assert set(entry.read.get("zero-shot", ())) <= set(entry.zero_shot)
    assert set(entry.read.get("linear-probe", ())) <= set(entry.linear_probe)


def test_metrics_fit_the_kinds():
    kinds = {
        "eleven_point_map": {"multi-label"}, "recall@1": {"retrieval"}, "shares_within_km": {"geo"}, "pm10": {"frames"},
        "mwap": {"action"}, "mean_of_top1_and_top5": {"action"}, "mean_per_class": {"classification"},
        "roc_auc": {"classification"}, "top1": {"classification", "action", "words"},
    }  # fmt: skip
    for metric in METRICS:
        assert {entry.kind for entry in TASKS.values() if entry.metric == metric} == kinds[metric], metric
    per_class = [entry.name for entry in TASKS.values() if entry.metric == "mean_per_class"]
    assert per_class == ["aircraft", "pets", "caltech101", "flowers"]
    assert [entry.name for entry in TASKS.values() if entry.reference] == ["im2gps"]


def test_names_and_aliases_lead_to_one_task():
    aliases = [alias for entry in TASKS.values() for alias in entry.aliases]
    assert len(set(aliases)) == len(aliases)
    copies = [entry.copy for entry in TASKS.values() if entry.copy]
    assert len(set(copies)) == len(copies)
    assert TASKS["pets"].aliases == ("pets", "wds_vtab-pets", "vtab-pets")
    assert TASKS["sst2"].aliases == ("sst2", "wds_renderedsst2", "renderedsst2")
    kitti = "kitti_closest_vehicle_distance"
    assert TASKS["kitti"].aliases == ("kitti", f"wds_vtab-{kitti}", f"vtab-{kitti}", kitti)
    assert TASKS["rareact"].aliases == ("rareact",)


def test_it_needs_no_torch():
    code = "import sys, limner.evaluation.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the paper's numbers ---------------------------------------------------------------------------------------------


def test_tables_have_the_nine_models():
    for name in COLUMNS:
        assert tuple(TASKS[name].zero_shot) == tuple(TASKS[name].linear_probe) == PAPER
    assert PAPER[-1] == BEST


@pytest.mark.parametrize(
    ("task", "model", "zero_shot", "linear_probe"),
    [
        ("imagenet", BEST, 76.2, 85.4),
        ("imagenet", "RN50", 59.6, 73.3),
        ("imagenet", "ViT-B/32", 63.2, 76.1),
        ("pets", "RN50", 85.4, 88.2),
        ("food101", BEST, 93.8, 95.9),
        ("food101", "RN50", 81.1, 86.4),
        ("stl10", BEST, 99.4, 99.7),
        ("mnist", "ViT-B/32", 51.9, 99.0),
        ("sun397", "ViT-B/16", 65.2, 78.4),
        ("sst2", BEST, 67.9, 80.5),  # and in Table 14
        ("hateful-memes", BEST, 63.3, 77.3),  # and in Table 14
        ("imagenet-a", BEST, 77.2, 75.3),
        ("youtube-bb", BEST, 88.5, 63.1),
    ],
)
def test_numbers_of_the_paper(task: str, model: str, zero_shot: float, linear_probe: float):
    assert (TASKS[task].zero_shot[model], TASKS[task].linear_probe[model]) == (zero_shot, linear_probe)


def test_figure_5_agrees_with_the_tables():
    """In Figure 5, 16 of 27 are wins; and it is the difference of two rows of the tables."""
    over, resnet = numbers(OVER_RESNET), numbers(RESNET_50)
    assert set(over) == set(COLUMNS)
    assert sum(value > 0 for value in over.values()) == 16
    differences = {name: TASKS[name].zero_shot[BEST] - value for name, value in resnet.items()}
    assert len(differences) == 15
    assert {name: difference for name, difference in differences.items() if abs(difference - over[name]) > 0.2} == {}


def test_differences_of_table_16():
    """Section 3.3: what adapting to ImageNet gains on each shift, from zero-shot with ImageNet's class names on."""
    said = numbers("imagenet +9.2 imagenetv2 +5.8 imagenet-a -1.9 imagenet-sketch -2.8 objectnet -3.8 imagenet-r -4.7")
    for name, difference in said.items():
        entry = TASKS[name]
        own_names = 2.3 if name == "objectnet" else 0.0  # points that its own class names bring
        zero_shot = entry.zero_shot[BEST] - own_names
        assert entry.linear_probe[BEST] - zero_shot == pytest.approx(difference, abs=0.15), name


def test_how_well_numbers_are_known():
    food, pets, sun = TASKS["food101"], TASKS["pets"], TASKS["sun397"]
    assert (food.how_known("zero-shot", "RN101"), food.how_known("linear-probe", "RN101")) == ("read", "recalled")
    assert (pets.how_known("zero-shot", "RN50"), pets.how_known("zero-shot", "RN101")) == ("read", "recalled")
    assert (food.known, sun.known) == ("recalled", "read")
    assert TASKS["imagenet"].how_known("linear-probe") == "read"
    assert all(TASKS[name].known == "read" for name in SHIFTS)
    assert (TASKS["flickr30k"].known, TASKS["mscoco"].known) == ("read", "recalled")
    assert TASKS["imagenet-blurry"].known == "recalled"  # it has no number


def test_counts_add_up():
    """Table 9 counts training and validation pictures together."""
    together = {
        "aircraft": 6_667, "voc2007": 5_011, "dtd": 3_760, "flowers": 2_040, "kitti": 6_770, "pcam": 294_912,
        "sst2": 7_792, "country211": 211 * 200, "resisc45": 2 * 3_150,
    }  # fmt: skip
    apart = {entry.name: entry for entry in TASKS.values() if entry.validation is not None}
    assert {name: (entry.train or 0) + (entry.validation or 0) for name, entry in apart.items()} == together
    assert all(TASKS[name].train and TASKS[name].test and TASKS[name].classes for name in COLUMNS)
    assert TASKS["caltech101"].train == 30 * 102 and TASKS["sun397"].train == 50 * 397
    assert TASKS["eurosat"].train == 10 * 1_000 and TASKS["eurosat"].test == 10 * 500
    assert TASKS["resisc45"].test == 45 * 700 - 2 * 3_150 and TASKS["country211"].test == 211 * 100


# --- asking for tasks ------------------------------------------------------------------------------------------------


def test_tasks_by_name_or_alias_in_the_order_of_the_registry():
    assert names(tasks_of(only=["pets", "food101", "pets"])) == ["food101", "pets"]
    assert names(tasks_of("shifts", ["wds_imagenet-r", "imagenet_sketch"])) == ["imagenet-r", "imagenet-sketch"]


@pytest.mark.parametrize(
    ("suite", "only", "message"),
    [
        ("shift", (), r"^The suite must be one of paper, .*geo. Got 'shift'. Did you mean shifts\?$"),
        ("%", (), "Or leave it out for all tasks."),
        (None, ("imagenet-z",), r"^The task must be one of the registry's 43. Got 'imagenet-z'. Did you mean imagenet"),
        (None, ("food101", "euro-sat"), r"Did you mean eurosat\?"),
        (None, ("%",), "They are food101, cifar10, .*, im2gps.$"),
        ("geo", ("pets",), "^The task must be one of the suite geo: country211, im2gps. Got 'pets'. It is in paper, "),
    ],
)
def test_unknown_suites_and_tasks(suite: str | None, only: tuple[str, ...], message: str):
    with pytest.raises(ConfigError, match=message):
        tasks_of(suite, only)


@pytest.mark.parametrize("alias", TASKS["cifar10"].aliases)
def test_a_folder_is_found_by_each_alias(tmp_path: Path, alias: str):
    assert place_in(tmp_path, TASKS["cifar10"]) is None
    (tmp_path / alias).mkdir()
    assert place_in(tmp_path, TASKS["cifar10"]) == tmp_path / alias
    assert place_in(tmp_path, TASKS["cifar100"]) is None
    assert place_in(tmp_path / "missing", TASKS["cifar10"]) is None


def test_a_folder_by_its_own_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for alias in TASKS["kitti"].aliases:
        (tmp_path / alias).mkdir()
    monkeypatch.chdir(tmp_path)
    assert place_in(Path(), TASKS["kitti"]) == Path("kitti")


def test_a_folder_is_never_outside(tmp_path: Path):
    root = tmp_path / "root"
    (root / "inner" / "deep").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    for name in ("..", ".", "../other", str(tmp_path / "other"), "inner/deep", "inner/"):
        assert place_in(root, Entry(name=name, title="")) is None, name
    assert place_in(root, Entry(name="inner", title="")) == root / "inner"


def test_a_file_is_no_place_and_a_link_to_a_folder_is_one(tmp_path: Path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "mnist").write_text("")
    assert place_in(tmp_path / "root", TASKS["mnist"]) is None
    (tmp_path / "disk").mkdir()
    (tmp_path / "root" / "wds_mnist").symlink_to(tmp_path / "disk")
    assert place_in(tmp_path / "root", TASKS["mnist"]) == tmp_path / "root" / "wds_mnist"
