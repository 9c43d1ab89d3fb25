import pyarrow as pa
import pytest

from limner.data.sources.kept import Kept


def test_kept_values_go_in_the_order_of_their_use():
    kept, made = Kept(250), []

    def get(key: str) -> None:
        kept.get(key, lambda: (made.append(key), pa.array([0] * 12, pa.int64()))[1])  # 96 bytes

    for key in "abacab":  # c drives b out, b then c
        get(key)
    assert made == ["a", "b", "c", "b"] and kept.bytes == 192


def test_a_value_that_cannot_be_made_is_not_kept():
    kept = Kept(100)
    with pytest.raises(OSError, match="once"):
        kept.get("a", lambda: (_ for _ in ()).throw(OSError("once")))
    assert kept.get("a", lambda: pa.array([1]))[0].as_py() == 1
