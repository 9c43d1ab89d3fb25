import copy
import inspect
import pickle
import pkgutil
from collections.abc import Callable, Iterator
from importlib import import_module

import pytest

import limner
from limner.errors import ConfigError, LimnerError, StorageError, did_you_mean, named, require

for module in pkgutil.walk_packages(limner.__path__, "limner."):
    import_module(module.name)


def below(kind: type[LimnerError]) -> Iterator[type[LimnerError]]:
    for child in kind.__subclasses__():
        yield child
        yield from below(child)


KINDS = [LimnerError, *below(LimnerError)]


def made(kind: type[LimnerError]) -> LimnerError:
    """An error of this class, its constructor's parameters filled with their names."""
    parameters = inspect.signature(kind).parameters.values()
    flags = {p.name: p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    return kind(*(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD), **flags)


def test_all_are_there():
    assert {"ConfigError", "MissingExtra", "Unreadable", "StorageError"} <= {kind.__name__ for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("copied", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_a_copy_is_the_same_error(kind: type[LimnerError], copied: Callable[[LimnerError], LimnerError]):
    error = made(kind)
    error.add_note("on rank 3")
    again = copied(error)
    assert type(again) is kind and again is not error
    assert str(again) == str(error) and again.args == error.args and vars(again) == vars(error)
    assert again.exit_code == error.exit_code and repr(again) == repr(error)


def test_facts_of_the_builtin_class_are_those_of_a_new_one():
    error = StorageError("The file x", must="be written", got=OSError(28, "No space left"), then="Make room.")
    again = pickle.loads(pickle.dumps(error))
    assert (again.errno, again.filename, str(again.got)) == (None, None, "[Errno 28] No space left")


def test_require():
    require(True, "x", "be y", 1, "Do z.")
    with pytest.raises(ConfigError, match=r"^x must be y\. Got 1\. Do z\.$"):
        require(False, "x", "be y", 1, "Do z.")


def test_did_you_mean():
    assert did_you_mean("clasify", ["classify", "search"], "See --help.") == "Did you mean classify?"
    assert did_you_mean("zzz", ["classify", "search"], "See --help.") == "See --help."


def test_a_value_is_named_in_a_few_signs():
    assert named(10**5000) == "int of 16,610 bits"
    assert named("x" * 10**7) == "str '" + "x" * 59 and named(None) == "None" and named(3) == "int 3"
    assert named([0] * 10**6) == "list"
