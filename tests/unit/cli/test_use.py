import pytest

from limner.cli.use import names_in


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (("cat", "dog"), ["cat", "dog"]),
        (("cat,dog",), ["cat", "dog"]),
        (("cat, red fox ,",), ["cat", "red fox"]),
        (("cat", "salt, pepper"), ["cat", "salt, pepper"]),
        (("cat",), ["cat"]),
        ((" ", "cat "), ["cat"]),
        ((), []),
    ],
)
def test_labels_are_apart_or_one_value_with_commas(labels: tuple[str, ...], names: list[str]):
    assert names_in(labels) == names
