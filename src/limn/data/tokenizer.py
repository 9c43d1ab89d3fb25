"""Captions to token ids: lower-cased byte-level BPE with [SOS] and [EOS] (paper section 2.4).

`"A dog." -> [SOS] a</w> dog</w> .</w> [EOS] 0 0 ... -> Int[context]`. The two special tokens have the two highest ids,
so the [EOS] of each row is its arg-max, and 0 fills the rest.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from limn.errors import ConfigError, ModelError
from limn.files import write_text

SOS, EOS = "[SOS]", "[EOS]"
# Words, one digit at a time, runs of other signs: OpenAI's splitting rule without its special cases.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
BYTES = 256


class Tokenizer:
    """Turns sentences into token ids. `cut` counts the sentences that were too long for the context."""

    def __init__(self, rules: tokenizers.Tokenizer, *, context_length: int = 77) -> None:
        rules.no_padding()
        rules.no_truncation()
        rules.encode_special_tokens = True  # a caption that says "[EOS]" is text, not the end of itself
        self.rules = rules
        self.context_length = context_length
        self.cut = 0
        if rules.token_to_id(SOS) is None or rules.token_to_id(EOS) is None:
            raise ModelError(
                "The tokenizer",
                must=f"have the tokens {SOS} and {EOS}",
                got=f"a vocabulary of {rules.get_vocab_size()} without them",
                then="Train one with: limn tokenizer train",
            )
        self.sos, self.eos = rules.token_to_id(SOS), rules.token_to_id(EOS)
        if self.eos != rules.get_vocab_size() - 1:
            raise ModelError(
                "The tokenizer",
                must=f"give {EOS} the highest id, by which the text encoder finds it",
                got=f"id {self.eos} of {rules.get_vocab_size()}",
                then="Train one with: limn tokenizer train",
            )

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self.rules.get_vocab_size()

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """The token ids of `texts`: int64[batch context], each row [SOS] ... [EOS] and then zeros.

        A text over the context is cut, keeps its [EOS], and is counted in `cut`.
        """
        ids = np.zeros((len(texts), self.context_length), dtype=np.int64)
        for row, encoding in zip(ids, self.rules.encode_batch(list(texts), add_special_tokens=False), strict=True):
            body = encoding.ids[: self.context_length - 2]
            self.cut += len(body) < len(encoding.ids)
            row[: len(body) + 2] = [self.sos, *body, self.eos]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        words = self.rules.decode([int(i) for i in ids if i not in (self.sos, self.eos)])
        return words.replace("</w>", " ").strip()

    def to_json(self) -> str:
        """The content of a tokenizer.json that the `tokenizers` and `transformers` libraries read too."""
        return self.rules.to_str(pretty=True)

    def save(self, path: Path) -> None:
        """Write tokenizer.json."""
        write_text(path, self.to_json())

    @classmethod
    def load(cls, path: Path, *, context_length: int = 77) -> "Tokenizer":
        """Read a tokenizer.json."""
        try:
            rules = tokenizers.Tokenizer.from_str(json.dumps(json.loads(path.read_text(encoding="utf-8"))))
        except Exception as error:  # the library raises bare Exception
            raise ModelError(
                f"The tokenizer {path}",
                must="be a readable tokenizer.json",
                got=error,
                then="Train one with: limn tokenizer train",
            ) from error
        return cls(rules, context_length=context_length)

    @classmethod
    def train(cls, captions: Iterable[str], *, vocab_size: int, context_length: int = 77) -> "Tokenizer":
        """Learn the merges from `captions`. The same captions give the same tokenizer.

        `vocab_size` is an upper bound: few captions yield fewer merges. It includes the 512 byte tokens (each byte
        inside and at the end of a word) and the two special ones.
        """
        if vocab_size < 2 * BYTES + 2:
            raise ConfigError(
                "vocab-size of the tokenizer",
                must=f"be at least {2 * BYTES + 2}",
                got=vocab_size,
                then="Every byte needs two tokens of its own.",
            )
        rules = tokenizers.Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
        rules.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        rules.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        rules.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        rules.train_from_iterator(
            captions,
            trainers.BpeTrainer(
                vocab_size=vocab_size - 2,
                special_tokens=[*alphabet, *(f"{byte}</w>" for byte in alphabet)],
                end_of_word_suffix="</w>",
                show_progress=False,
            ),
        )
        rules = _without_special_bytes(rules)
        rules.add_special_tokens([SOS, EOS])
        rules.post_processor = processors.TemplateProcessing(
            single=f"{SOS} $A {EOS}",
            special_tokens=[(SOS, rules.token_to_id(SOS)), (EOS, rules.token_to_id(EOS))],
        )
        return cls(rules, context_length=context_length)


def _without_special_bytes(rules: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The trainer puts every byte first when told that bytes are special; afterwards they are ordinary tokens."""
    values = json.loads(rules.to_str())
    values["added_tokens"] = []
    return tokenizers.Tokenizer.from_str(json.dumps(values))
