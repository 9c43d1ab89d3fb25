"""The paper's vocabulary, loaded once for all tests: it takes half a second."""

from functools import cache

from limner.data.tokenizer import Tokenizer

_openai = cache(Tokenizer.openai)


def openai(*, context_length: int = 77) -> Tokenizer:
    """As `Tokenizer.openai` gives it, with nothing cut yet."""
    tokenizer = _openai(context_length=context_length)
    tokenizer.cut = 0
    return tokenizer
