import pytest

from limner.cli.command import main
from limner.cli.use import names_in


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (("cat", "dog"), ["cat", "dog"]),
        (("cat,dog",), ["cat", "dog"]),
        (("cat, red fox ,",), ["cat", "red fox"]),
        (("cat", "salt, pepper"), ["cat", "salt, pepper"]),
        (("cat",), ["cat"]),
        (("one,", "two,", "three"), ["one", "two", "three"]),
        ((" ", "cat "), ["cat"]),
        ((), []),
    ],
)
def test_labels_are_apart_or_one_value_with_commas(labels: tuple[str, ...], names: list[str]):
    assert names_in(labels) == names


def test_an_option_given_twice_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exited:
        main(["eval", "run", "--data", "a", "--data", "b"])
    assert exited.value.code == 2 and "--data must be given once" in capsys.readouterr().err
