import subprocess
import sys

import pytest

import limn


def test_all_is_sorted_and_complete():
    assert sorted(limn.__all__) == sorted(limn._HOME)
    assert limn.__all__ == sorted(limn.__all__)


@pytest.mark.parametrize("name", limn.__all__)
def test_every_public_name_is_there_and_described(name: str):
    assert getattr(limn, name).__doc__


def test_import_limn_does_not_import_torch():
    code = "import sys, limn; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match="contrastive_loss"):
        limn.clip_loss  # noqa: B018
