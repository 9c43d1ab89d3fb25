import subprocess
import sys

import pytest

import limner


def test_all_is_sorted_and_complete():
    assert sorted(limner.__all__) == sorted(limner._HOME)
    assert limner.__all__ == sorted(limner.__all__)


@pytest.mark.parametrize("name", limner.__all__)
def test_every_public_name_is_there_and_described(name: str):
    assert getattr(limner, name).__doc__


def test_import_limner_does_not_import_torch():
    code = "import sys, limner; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match="contrastive_loss"):
        limner.clip_loss  # noqa: B018
