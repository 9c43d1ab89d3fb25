"""The classes of a task, and what they are called.

```
.cls in shards, whole numbers as labels in a list ─> the lines of classnames.txt, in the folder or the one around it
texts as labels in a list, a table's ClassLabel  ─> these texts, or the lines of classnames.txt that say the same
FOLDER/<class>/*.jpg, without any caption        ─> the folders' names, or the lines of classnames.txt: those that say
                                                    the same, or, where none does, one for each folder in their order
any of them, beside a classnames.csv             ─> its names, several of a class if need be: id,name,another name
```

A class is known by its id: the folder, the text, or the number of its line. Where training pictures lie beside those
that are measured, classes are matched by it. A class and its line are matched by their words; where only some of them
match, that is an error, not a guess.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from limner.data.pairs import Pair, Source, csv_beside, is_hidden, is_number, lines_beside
from limner.data.tokenizer import clean
from limner.errors import DataError
from limner.files import printable
from limner.progress import say

SPLITS = ("test", "val", "train")
"""What folders that are no classes are called (`split_of`); the first that there is is the one to measure on."""
Label = int | tuple[int, ...] | None
"""The class of an image, all of those of one that may have several, or none."""


@dataclass(frozen=True)
class Classes:
    """The classes of a task; a label is a place among them."""

    ids: tuple[str, ...]
    """What tells one from the others."""
    names: tuple[tuple[str, ...], ...]
    """What each is called, in one or more ways."""

    @property
    def class_names(self) -> list[str]:
        """The first name of each."""
        return [names[0] for names in self.names]

    @property
    def has_several_names(self) -> bool:
        """Whether some class is called in more than one way."""
        return any(len(names) > 1 for names in self.names)


NO_CLASSES = Classes((), ())


def classes_of(splits: Sequence[tuple[Source, Sequence[Pair]]]) -> tuple[Classes, list[list[Label]]]:
    """(the classes of a task, the label of each pair of each of its splits), of (source, its pairs), measured ones
    first; no classes where nothing says what they are.

    Raises `DataError` for class folders or labels that do not fit classnames.txt or one another.
    """
    source = splits[0][0]
    found = [_ids(*split) for split in splits]
    ids = found[0][0]
    for (other, _), (others, _) in zip(splits[1:], found[1:], strict=True):
        if (ids is None) != (others is None) or (ids == []) != (others == []):
            raise DataError(
                f"The classes of {other.path}",
                must=f"be known as those of {source.path} are",
                got="numbers in one of them, and texts, folders or nothing in the other",
                then="Label both in one way.",
            )
    if ids is None:
        return _numbered(source, [labels for _, labels in found])
    if not ids:
        return NO_CLASSES, [[None] * len(pairs) for _, pairs in splits]
    together = _together([one or [] for one, _ in found])
    places = {one: place for place, one in enumerate(together)}
    labels: list[list[Label]] = [
        [places[(one or [])[label]] if isinstance(label, int) else None for label in of_split]
        for one, of_split in found
    ]
    classes = _named([one for one, _ in splits], together, are_folders=not source.classes)
    order = {one: place for place, one in enumerate(classes.ids)}
    moved = [order[one] for one in together]
    return classes, [[moved[one] if isinstance(one, int) else None for one in of_split] for of_split in labels]


def say_counts(path: object, classes: Classes, labels: Sequence[Label]) -> None:
    """Say which classes have no picture, and which have a single one where most have more."""
    counts = Counter(one for label in labels for one in each_of(label))
    for count, words in ((0, "have no picture that can be read"), (1, "have a single one")):
        few = [name for place, name in enumerate(classes.class_names) if counts[place] == count]
        if few and (count == 0 or len(few) < len(classes.ids) / 2):
            named = ", ".join(few[:5]) + (", ..." if len(few) > 5 else "")
            say(f"Of the {len(classes.ids):,} classes of {path} {len(few):,} {words}: {named}.")


def each_of(label: Label) -> tuple[int, ...]:
    """The classes that a label names."""
    return () if label is None else (label,) if isinstance(label, int) else label


def _ids(source: Source, pairs: Sequence[Pair]) -> tuple[list[str] | None, list[Label]]:
    """(what tells the classes of a split apart, each pair's place among them); None: they are numbers, []: none."""
    labels: list[Label] = [pair.label if pair.labels is None else pair.labels for pair in pairs]
    if source.classes:
        return _text_ids(source.classes), labels
    if any(label is not None for label in labels):
        return None, labels
    captioned = sum(bool(pair.captions) for pair in pairs)
    if captioned:
        if captioned < len(pairs) / 2 and any("/" in pair.key for pair in pairs):
            say(
                f"The folders in {source.path} are not taken for classes, because {captioned:,} of its pictures have "
                "captions: move these .txt files elsewhere to have it classified."
            )
        return [], labels
    return _folders(source, pairs)


def _text_ids(classes: Sequence[str]) -> list[str]:
    """Texts as ids; of classes with one name, a number tells one from the other."""
    counts = Counter(classes)
    return [f"{one} ({place})" if counts[one] > 1 else one for place, one in enumerate(classes)]


def _together(ids: Sequence[list[str]]) -> list[str]:
    """The ids of all splits: as they are where these agree, else in the order of their names, or of their numbers."""
    if all(one == ids[0] for one in ids):
        return ids[0]
    every = set().union(*ids)
    return sorted(every, key=int if all(map(is_number, every)) else str)


# --- what tells classes apart ----------------------------------------------------------------------------------------


def _folders(source: Source, pairs: Sequence[Pair]) -> tuple[list[str], list[Label]]:
    """Classes by the folders in which images without captions lie, in the order of their names, or of their numbers."""
    tops = [PurePosixPath(pair.key).parts[0] if "/" in pair.key else None for pair in pairs]
    folders = sorted({top for top in tops if top is not None})
    are_files = all(printable(Path(pair.path).name) == PurePosixPath(pair.key).name for pair in pairs)
    if folders and "::" in str(source.path) and are_files:
        raise DataError(
            f"The class folders of {source.path}",
            must="be measured one source after the other",
            got="several sources as one, whose classes may be others",
            then="Give them with spaces between: --data A B.",
        )
    if not folders or not are_files or not Path(source.path).is_dir():  # keys in shards and tables are no paths
        return [], [None] * len(pairs)
    if all(map(split_of, folders)):
        raise DataError(
            f"The folder {source.path}",
            must="hold a folder for each class",
            got=f"the splits {', '.join(folders)}",
            then="Give its path, as text, to limner eval or limner.evaluate.",
        )
    if len(folders) == 1 and None not in tops and all(len(PurePosixPath(pair.key).parts) > 2 for pair in pairs):
        raise DataError(
            f"The folder {source.path}",
            must="hold a folder for each class",
            got=f"one folder, {folders[0]}, with others in it",
            then=f"Give that one: {source.path}/{folders[0]}",
        )
    if found := [folder for folder in folders if split_of(folder)]:
        say(f"{', '.join(found)} in {source.path} are taken for classes, for there are other folders beside them.")
    if all(map(is_number, folders)):
        folders.sort(key=int)
    places = {folder: place for place, folder in enumerate(folders)}
    return folders, [None if top is None else places[top] for top in tops]


def split_of(folder: str) -> str | None:
    """Which of `SPLITS` a folder's name means: Testing, val2017, dev_set; None: none."""
    found = re.fullmatch(r"(test|val|valid|validation|dev|eval|train)(?:ing)?[-_ ]?(?:set|\d{4})?", folder.lower())
    return found and (found[1] if found[1] in SPLITS else "val")


# --- what classes are called -----------------------------------------------------------------------------------------


def _lines(source: Source) -> list[str]:
    lines = lines_beside(source.path, "classnames.txt")
    if "" in (words := [clean(line) for line in lines]):
        raise DataError(
            f"Line {words.index('') + 1} of the classnames.txt of {source.path}",
            must="be the name of a class",
            got="an empty line",
            then="Correct it: a class is the number of its line.",
        )
    return lines


def _numbered(source: Source, labels: list[list[Label]]) -> tuple[Classes, list[list[Label]]]:
    """Classes by numbers: the lines of classnames.txt, or the rows of classnames.csv."""
    rows = {row[0]: row[1:] for row in csv_beside(source.path, "classnames.csv")}
    if rows:
        ids = sorted(rows, key=lambda one: int(one) if is_number(one) else -1)
        if ids != [str(place) for place in range(len(ids))]:
            raise DataError(
                f"The classnames.csv of {source.path}",
                must="have a row for each number of a class, from 0 on",
                got=f"rows for {', '.join(ids[:5])}",
                then="Write number,name for each: 0,cat.",
            )
        names = tuple(rows[one] for one in ids)
    else:
        names = tuple((line,) for line in _lines(source))
    largest = max((one for of_split in labels for label in of_split for one in each_of(label)), default=-1)
    if names and largest >= len(names):
        raise DataError(
            "The labels of the pictures",
            must=f"be below {len(names)}, the number of classes that have names",
            got=largest,
            then="Labels are counted from 0, in the order of classnames.txt.",
        )
    return Classes(tuple(map(str, range(len(names)))), names), labels


def _named(sources: Sequence[Source], ids: list[str], *, are_folders: bool) -> Classes:
    """The classes of these ids with their names, in the order of classnames.txt where that is used."""
    source = sources[0]
    rows = csv_beside(source.path, "classnames.csv")
    if rows:
        names = {row[0]: row[1:] for row in rows}
        missing = [one for one in ids if one not in names]
        if missing:
            raise DataError(
                f"The classnames.csv of {source.path}",
                must="have a row for each class",
                got=f"none for {', '.join(missing[:5])}",
                then="Write id,name for each, the id spelt as the folder or the label is.",
            )
        return Classes(tuple(ids), tuple(names[one] for one in ids))
    lines = _lines(source)
    places = _places(source, ids, lines)
    if places is None and lines and are_folders:
        places = _by_order(sources, ids, lines)
    elif places is None and len(lines) == len(ids) and ids == list(map(str, range(len(ids)))):
        places = list(range(len(ids)))  # a table's ClassLabel whose names are the numbers
    if places is None:
        if lines:
            say(f"The classnames.txt of {source.path} holds none of the names in its labels, and is not used.")
        if are_folders and all(re.fullmatch(r"n\d{8}", one) for one in ids):
            say(
                f"The folders of {source.path} are named by WordNet's numbers, which say nothing to a text encoder: "
                "put a classnames.txt beside them, a line for each folder, sorted by name."
            )
        texts = {id: text for one in sources for id, text in zip(_text_ids(one.classes), one.classes, strict=True)}
        return Classes(tuple(ids), tuple((as_words(one) if are_folders else texts[one],) for one in ids))
    of_line = dict(zip(places, ids, strict=True))
    return Classes(
        tuple(of_line.get(place, f"line {place + 1} of classnames.txt") for place in range(len(lines))),
        tuple((line,) for line in lines),
    )


def _by_order(sources: Sequence[Source], folders: Sequence[str], lines: Sequence[str]) -> list[int]:
    """The line of each class folder where none says a folder's name: one for each, in the order of names or numbers.

    Folders with no picture that can be read count as well. Raises `DataError` where their numbers do not fit, and where
    words say that another order is meant; what is taken is said.
    """
    source, there = sources[0], set[str]()
    for one in sources:
        there |= {path.name for path in Path(one.path).iterdir() if path.is_dir() and not is_hidden(path.name)}
    all_folders = sorted(there | set(folders))
    counted = sorted(int(folder) for folder in all_folders if is_number(folder))
    are_numbers = len(counted) == len(all_folders)
    places = {folder: place for place, folder in enumerate(sorted(all_folders, key=int if are_numbers else str))}
    fits = len(lines) == len(all_folders)
    if are_numbers and fits:  # from 0 or from 1 on, without gaps
        fits = counted == list(range(counted[0], counted[0] + len(counted))) and counted[0] in (0, 1)
    elif are_numbers and counted[0] == 0 and counted[-1] < len(lines) and len(set(counted)) == len(counted):
        places, fits = {folder: int(folder) for folder in all_folders}, True
    if not fits:
        raise DataError(
            f"The classnames.txt of {source.path}",
            must=f"have a line for each of its {len(all_folders)} folders, in their order",
            got=f"{len(lines)} lines" + (f", for folders {counted[0]} to {counted[-1]}" if are_numbers else ""),
            then="Correct it, or move it away for the folders' own names.",
        )
    words = [_words(line) for line in lines]
    for folder in folders:
        own = _words(folder)
        if own & set().union(*words) and not own & words[places[folder]]:
            raise DataError(
                f"Line {places[folder] + 1} of the classnames.txt of {source.path}",
                must=f"be the name of the folder {folder}, which is the one of that number in their order",
                got=lines[places[folder]],
                then="Write the lines in the order of the folders, or with the folders' own words.",
            )
    first = min(folders, key=places.__getitem__)
    say(
        f"The lines of classnames.txt are taken for the folders of {source.path} in their order: {first} is "
        f"{lines[places[first]]!r}, and so on."
    )
    return [places[folder] for folder in folders]


def _words(name: str) -> set[str]:
    """The words in a name that say what it is: of three letters or more."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return {word for word in re.findall(r"[^\W\d_]{3,}", parted.lower())}


def _places(source: Source, ids: Sequence[str], lines: Sequence[str]) -> list[int] | None:
    """The line of classnames.txt that says the same as each of `ids`; None if none does.

    Spelt alike, or with other blanks and capitals (SeaLake), or behind a number (001.Sea_lake), or with the id in front
    (n01443537 goldfish). Raises `DataError` if only some do: a guess would give classes the names of others.
    """
    without = list(ids)
    for of_id, of_line in SPELLINGS:
        places = {of_line(line): place for place, line in reversed(list(enumerate(lines)))}
        found = [places.get(of_id(one)) for one in ids]
        if None not in found and len(set(found)) == len(found):
            return [place for place in found if place is not None]
        missing = [one for one, place in zip(ids, found, strict=True) if place is None]
        without = min(without, missing, key=len)
    if len(without) == len(ids):
        return None
    named = f"none for {', '.join(without[:5])}" if without else "one line for several of them"
    raise DataError(
        f"The classnames.txt of {source.path}",
        must="say the name of each of its classes, or of none of them",
        got=f"{named}, of {len(ids)} classes",
        then="Add what is missing, spelt as the class is, or move the file away.",
    )


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, clean(name)))


def _unnumbered(name: str) -> str:
    return _letters(re.sub(r"^(n\d{8}|\d+)[-._ ]+", "", name))


def _in_front(line: str) -> str:
    return line.split()[0] if line.split() else ""


SPELLINGS: tuple[tuple[Callable[[str], str], Callable[[str], str]], ...] = (
    (clean, clean),
    (_letters, _letters),
    (_unnumbered, _unnumbered),
    (str, _in_front),
)
"""How a class and its line in classnames.txt may be compared, the strictest first."""


def as_words(name: str) -> str:
    """A folder's name as text: _ and - are blanks."""
    return re.sub(r"[\s_-]+", " ", name).strip() or name
