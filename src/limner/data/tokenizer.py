"""Captions to token ids: lower-cased byte-level BPE with a start and an end token (paper section 2.4).

`"A dog." -> <|startoftext|> a</w> dog</w> .</w> <|endoftext|> 0 0 ... -> Int[context]`. The end token has the highest
id, so that of each row is its arg-max, and 0 fills the rest. With OpenAI's merges the ids are those of OpenAI's own
tokenizer (https://github.com/openai/CLIP, simple_tokenizer.py), but for two things: a caption that says
"<|endoftext|>" is text, not the end of itself; and characters newer than Unicode 16 may be split differently, there
as here by what the regular expression library of the day knows.
"""

import gzip
import html
import json
import os
from collections.abc import Iterable, Iterator, KeysView, Mapping, Set
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from limner.errors import ConfigError, LimnerError, ModelError, named, require
from limner.files import write_text

SOS, EOS = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"  # closes the last token of a word
# Words, one digit at a time, runs of other signs. OpenAI's rule ignores case, which shows in two characters that
# lower-casing leaves: U+017F, the long s, counts as an s; U+0345, whose capital is a letter, counts as nothing at all.
WORDS = "'[s\u017f]|'t|'re|'ve|'m|'ll|'d|\\p{L}+|\\p{N}|[^\\s\\p{L}\\p{N}\u0345]+"
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())  # one visible character for each byte
EVERY_BYTE = [*BYTES, *(byte + WORD_END for byte in BYTES)]
OPENAI_MERGES = Path(__file__).with_name("openai_bpe") / "merges.txt.gz"
OPENAI_MERGE_COUNT = 48_894  # of the 262,144 in OpenAI's file: 49,408 less 512 byte tokens and two special ones
LARGEST_FILE = 64 * 2**20  # bytes, after unpacking; OpenAI's own is 3 MB

Merges = list[tuple[str, str]]


def clean(text: str) -> str:
    """`text` as OpenAI cleans it: mojibake repaired, HTML unescaped, blanks collapsed, lower-cased."""
    # Of visible ASCII, all but HTML entities stays as it is; a property test compares the two ways.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        import ftfy  # takes 40 ms; English captions do not need it

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def several(values: Any, what: str, *, one: str) -> Iterable[Any]:
    """`values`, if they are several things in an order: a list, an array, a column, a generator.

    Raises `ConfigError` for what has no order, and for a table, of which a loop would see the names of the columns.
    `what` they are, and what `one` of them is, is for the error.
    """
    is_table = getattr(values, "ndim", 1) != 1
    has_order = isinstance(values, KeysView) or not isinstance(values, Set | Mapping)
    if isinstance(values, Iterable) and has_order and not is_table:
        return values
    raise ConfigError(
        what,
        must=f"be {one}, or several in an order",
        got=f"{named(values)}{' of another shape' * is_table}",
        then="Pass one, or a list of them.",
    )


def texts_of(texts: Any, what: str = "The sentences") -> Iterator[str]:
    """The sentences among `texts`: one alone, or a list, an array, a column or a generator of them.

    Raises `ConfigError` for what is no sentence, and says at which place it is.
    """
    if isinstance(texts, np.ndarray) and texts.ndim == 0:
        texts = texts.item()
    if isinstance(texts, bytes | bytearray | memoryview | os.PathLike):
        _refuse_text(what, texts)
    for place, text in enumerate([texts] if isinstance(texts, str) else several(texts, what, one="a text")):
        if not isinstance(text, str):
            _refuse_text(f"{what}, at place {place},", text)
        yield text


def _refuse_text(what: str, got: Any) -> NoReturn:
    is_bytes = isinstance(got, bytes | bytearray | memoryview)
    raise ConfigError(
        what,
        must="be text (str)",
        got=named(got),
        then="Decode it: content.decode()." if is_bytes else 'Pass a sentence, "a dog", or a list of sentences.',
    )


def path_of(path: Any, what: str) -> Path:
    """`path` as a Path. Raises `ConfigError` for what is none."""
    if isinstance(path, str | os.PathLike) and isinstance(name := os.fspath(path), str) and _can_be_a_path(name):
        return Path(name)
    raise ConfigError(what, must="be a path", got=named(path), then="Pass a str or a pathlib.Path.")


def _can_be_a_path(name: str) -> bool:
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    is_short = len(encoded) < 4096 and max(map(len, encoded.split(b"/"))) < 256
    return bool(encoded.strip()) and b"\0" not in encoded and is_short


class Tokenizer:
    """Turns sentences into token ids. `cut` counts the sentences that were too long for the context.

    `vocab` lists the tokens by id, `merges` the pairs to join, first ones first.
    """

    def __init__(self, vocab: list[str], merges: Merges, *, context_length: Any = 77) -> None:
        require(
            isinstance(context_length, int | np.integer) and bool(context_length >= 3),
            "The context length of the tokenizer",
            "be a whole number of at least 3",
            named(context_length),
            "The start and the end token take two of it.",
        )
        missing = {SOS, EOS, *EVERY_BYTE}.difference(vocab)
        if missing:
            raise ModelError(
                "The tokenizer",
                must=f"have {SOS}, {EOS} and a token for each byte, inside and at the end of a word",
                got=f"a vocabulary of {len(vocab)} without {min(missing)}",
                then="Train one with: limner tokenizer train",
            )
        if vocab[-1] != EOS:
            raise ModelError(
                "The tokenizer",
                must=f"give {EOS} the highest id, by which the text encoder finds it",
                got=f"id {vocab.index(EOS)} of {len(vocab)}",
                then="Train one with: limner tokenizer train",
            )
        self.vocab, self.merges, self.context_length = vocab, merges, int(context_length)
        self.sos, self.eos = vocab.index(SOS), vocab.index(EOS)
        self.cut = 0
        # Without the normalizer: its lower-casing and NFC are nearly, but not always, what `clean` does.
        self.rules = tokenizers.Tokenizer.from_str(json.dumps(_rules(vocab, merges) | {"normalizer": None}))
        self.rules.encode_special_tokens = True  # a caption that says EOS is text, not the end of itself

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: all but the library's part, which forgets in a copy that special tokens are text."""
        return {name: value for name, value in vars(self).items() if name != "rules"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Tokenizer.__init__(self, state["vocab"], state["merges"], context_length=state["context_length"])
        vars(self).update(state)

    def is_like(self, other: "Tokenizer") -> bool:
        """Whether both give every sentence the same ids: the same tokens, joined in the same order."""
        return (self.vocab, self.merges) == (other.vocab, other.merges)

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self.vocab)

    def __call__(self, texts: Any) -> np.ndarray:
        """The token ids of a sentence, or of several: int64[batch context], each row SOS ... EOS and then zeros.

        A text over the context is cut, keeps its EOS, and is counted in `cut`. Several are a list, an array, a column
        or a generator of str; anything else is a `ConfigError`.
        """
        cleaned = [clean(text) for text in texts_of(texts)]
        ids = np.zeros((len(cleaned), self.context_length), dtype=np.int64)
        encodings = self.rules.encode_batch_fast(cleaned, add_special_tokens=False)
        for row, encoding in zip(ids, encodings, strict=True):
            whole = encoding.ids
            body = whole[: self.context_length - 2]
            self.cut += len(body) < len(whole)
            row[: len(body) + 2] = [self.sos, *body, self.eos]
        return ids

    def decode(self, ids: Any) -> str:
        """The text of one sentence's token ids, int[tokens]: a list, a row of an array or of a tensor.

        Up to the end token, where there is one, for what follows fills the row; special tokens are left out. Raises
        `ConfigError` for what are not the ids of one sentence.
        """
        what = "The token ids of a sentence"
        ids = ids.cpu() if hasattr(ids, "cpu") else ids
        try:
            row = np.asarray(ids if hasattr(ids, "__array__") else list(several(ids, what, one="one row")))
        except (ValueError, TypeError, RuntimeError):  # rows of different lengths, bfloat16, with a gradient
            row = np.empty((0, 0))
        is_row = row.ndim == 1 and (row.dtype.kind in "iu" or row.size == 0)
        wrong = [int(i) for i in row if not 0 <= i < self.vocab_size] if is_row else []
        require(
            is_row and not wrong,
            what,
            f"be one row of whole numbers from 0 to {self.vocab_size - 1}",
            f"{wrong[0]}" if wrong else named(ids),
            "Decode the rows of several sentences one by one.",
        )
        words = row.tolist()
        words = words[: words.index(self.eos)] if self.eos in words else words
        return self.rules.decode([i for i in words if i != self.sos]).strip()

    def to_json(self) -> str:
        """The content of a tokenizer.json that the `tokenizers` and `transformers` libraries read too.

        The same vocabulary and merges give the same bytes, whichever file they came from. Other readers clean less
        than `clean` does; on plain ASCII text their ids are the same.
        """
        return json.dumps(_rules(self.vocab, self.merges), indent=2, ensure_ascii=False)

    def save(self, path: Any) -> None:
        """Write tokenizer.json to `path`, a str or a Path."""
        write_text(path_of(path, "The file for the tokenizer"), self.to_json())

    @classmethod
    def openai(cls, *, context_length: Any = 77) -> "Tokenizer":
        """The paper's vocabulary of 49,408 tokens."""
        return cls(*_parse_merges(_read(OPENAI_MERGES)), context_length=context_length)

    @classmethod
    def load(cls, path: Any, *, context_length: Any = 77) -> "Tokenizer":
        """Read a tokenizer.json, limner's or Hugging Face's for CLIP, or OpenAI's merges (`.txt`, `.txt.gz`).

        `path` is a str or a Path. Raises `ModelError` if it is no such file.
        """
        path = path_of(path, "The file of the tokenizer")
        try:
            if path.suffix in (".gz", ".txt"):
                _version, _, lines = _read(path).partition("\n")
                vocab, merges = _parse_merges(lines)
            else:
                vocab, merges = _parse_json(_read(path))
            return cls(vocab, merges, context_length=context_length)
        except LimnerError:
            raise
        except Exception as error:  # the library raises bare Exception
            raise ModelError(
                f"The tokenizer {path}",
                must="be a readable tokenizer.json or OpenAI's file of merges",
                got=f"{type(error).__name__}: {error}",
                then="Train one with: limner tokenizer train",
            ) from error

    @classmethod
    def train(cls, captions: Any, *, vocab_size: Any, context_length: Any = 77) -> "Tokenizer":
        """Learn the merges from `captions`, one text or several. The same captions give the same tokenizer.

        `vocab_size` is an upper bound: few captions yield fewer merges. It includes the 512 byte tokens (each byte
        inside and at the end of a word) and the two special ones.
        """
        require(
            isinstance(vocab_size, int | np.integer) and bool(vocab_size >= len(EVERY_BYTE) + 2),
            "vocab-size of the tokenizer",
            f"be a whole number of at least {len(EVERY_BYTE) + 2}",
            repr(vocab_size),
            "Every byte needs two tokens of its own.",
        )
        rules = tokenizers.Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix=WORD_END))
        rules.pre_tokenizer = cls([*EVERY_BYTE, SOS, EOS], []).rules.pre_tokenizer
        rules.train_from_iterator(
            map(clean, texts_of(captions, "The captions")),
            trainers.BpeTrainer(
                vocab_size=int(vocab_size) - 2,
                special_tokens=EVERY_BYTE,  # puts every byte first; afterwards they are ordinary tokens
                end_of_word_suffix=WORD_END,
                show_progress=False,
            ),
        )
        vocab, merges = _parse_model(json.loads(rules.to_str())["model"], added={})
        return cls([*vocab, SOS, EOS], merges, context_length=context_length)


def _rules(vocab: list[str], merges: Merges) -> dict[str, Any]:
    """The content of tokenizer.json.

    Written here and not by the library, so that its next version does not change the fingerprint of a model.
    """
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocab.index(token), "content": token, **special} for token in (SOS, EOS)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                {"type": "Lowercase"},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Removed", "invert": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [EOS, vocab.index(EOS)],
            "cls": [SOS, vocab.index(SOS)],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
                {"type": "Replace", "pattern": {"String": WORD_END}, "content": " "},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": WORD_END,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(vocab)},
            "merges": [" ".join(pair) for pair in merges],
        },
    }


def _read(path: Path) -> str:
    """The text of a file, unpacked if its name says so. A small file that unpacks to a huge one is refused."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise ModelError(
            f"The tokenizer {path}",
            must=f"be at most {LARGEST_FILE} bytes, unpacked",
            got="more",
            then="Check that it is the right file.",
        )
    return content.decode("utf-8")


def _parse_merges(lines: str) -> tuple[list[str], Merges]:
    """Vocabulary and merges from OpenAI's merges, one pair on each line; those after the first 48,894 are not used."""
    merges = [(a, b) for a, b in map(str.split, lines.split("\n")[:OPENAI_MERGE_COUNT])]
    vocab = [*EVERY_BYTE, *(a + b for a, b in merges), SOS, EOS]
    if len(set(vocab)) < len(EVERY_BYTE) + OPENAI_MERGE_COUNT + 2:
        raise ValueError(f"{len(merges)} merges, where {OPENAI_MERGE_COUNT} different ones were expected")
    return vocab, merges


def _parse_json(text: str) -> tuple[list[str], Merges]:
    """Vocabulary and merges from the content of a tokenizer.json."""
    values = json.loads(text)
    model = values["model"]
    kind = {name: model.get(name) or "" for name in ("type", "end_of_word_suffix", "continuing_subword_prefix")}
    if kind != {"type": "BPE", "end_of_word_suffix": WORD_END, "continuing_subword_prefix": ""}:
        raise ModelError(
            "The tokenizer",
            must=f"be a byte-level BPE whose words end in {WORD_END}, as CLIP's",
            got=kind,
            then="Train one with: limner tokenizer train",
        )
    if '"Lowercase"' not in json.dumps(values.get("normalizer")):
        raise ModelError(
            "The tokenizer",
            must="lower-case its text, as CLIP's",
            got="a normalizer that keeps capitals",
            then="Train one with: limner tokenizer train",
        )
    return _parse_model(model, added={token["content"]: token["id"] for token in values["added_tokens"]})


def _parse_model(model: dict[str, Any], *, added: dict[str, int]) -> tuple[list[str], Merges]:
    """Vocabulary and merges of a BPE model in a tokenizer.json, where merges are "a b" or ["a", "b"]."""
    ids = model["vocab"] | added
    vocab = sorted(ids, key=ids.__getitem__)
    if [ids[token] for token in vocab] != list(range(len(vocab))):
        raise ModelError(
            "The tokenizer",
            must="number its tokens 0, 1, 2 ... without gaps",
            got=f"{len(vocab)} tokens and the highest id {max(ids.values())}",
            then="Train one with: limner tokenizer train",
        )
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    return vocab, [(a, b) for a, b in pairs]
