import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.data import order as module
from limner.data.order import Order, permuted, quality, uniform

COUNTS = st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(any)
MAYBE = st.lists(st.integers(0, 60), max_size=8)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch):
    """Windows and cells that small sources have several of."""
    monkeypatch.setattr(module, "WINDOW", 50)
    monkeypatch.setattr(module, "CELL", 16)


@settings(max_examples=50)
@given(count=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_a_permutation_has_every_place_once(count: int, key: int):
    assert sorted(permuted(np.arange(count), count, key)) == list(range(count))


def test_all_permutations_of_three_are_alike_likely():
    orders = permuted(np.arange(3), 3, np.arange(6000)[:, None])
    assert all(orders[key].tolist() == permuted(np.arange(3), 3, key).tolist() for key in (0, 17, 5999))
    _, counts = np.unique(orders, axis=0, return_counts=True)
    # six of 1,000 expected; chi-squared with 5 degrees of freedom is below 20.5 with p = 0.999
    assert len(counts) == 6 and ((counts - 1000) ** 2 / 1000).sum() < 20.5


@settings(max_examples=40)
@given(counts=COUNTS, seed=st.integers(0, 2**32), epoch=st.integers(0, 1000))
def test_an_epoch_is_every_pair_once(counts: list[int], seed: int, epoch: int):
    order = Order([counts], [1.0], seed=seed)
    epochs, indices = order.samples(epoch * order.pairs, order.pairs)
    assert set(epochs) == {epoch} and sorted(indices) == list(range(sum(counts)))


@settings(max_examples=25)
@given(
    stocks=st.lists(MAYBE, min_size=1, max_size=3).filter(lambda stocks: any(map(any, stocks))),
    weights=st.lists(st.sampled_from([0.3, 0.5, 1.0, 2.0, 3.7]), min_size=3, max_size=3),
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=8),
)
def test_the_stream_does_not_depend_on_how_it_is_cut(stocks: list[list[int]], weights: list[float], sizes: list[int]):
    order = Order(stocks, weights[: len(stocks)], seed=7)
    epochs, indices = order.samples(0, sum(sizes))
    first = 0
    again = Order(stocks, weights[: len(stocks)], seed=7)
    for size in sizes:  # by batch, rank or worker: any cut
        part = again.samples(first, size)
        assert np.array_equal(part[0], epochs[first : first + size])
        assert np.array_equal(part[1], indices[first : first + size])
        first += size


@settings(max_examples=20)
@given(
    stocks=st.lists(MAYBE, min_size=2, max_size=4).filter(lambda stocks: any(map(any, stocks))),
    weights=st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.7]), min_size=4, max_size=4),
    epochs=st.integers(1, 5),
)
def test_a_mixture_sees_each_pair_as_often_as_its_weight_says(
    stocks: list[list[int]], weights: list[float], epochs: int
):
    order = Order(stocks, weights[: len(stocks)], seed=1)
    own_epochs, indices = order.samples(0, epochs * order.pairs)
    first = 0
    for stock, share in zip(stocks, order.shares.tolist(), strict=True):
        pairs = sum(stock)
        here = (indices >= first) & (indices < first + pairs)
        assert here.sum() == epochs * share
        if pairs == 0:
            continue
        # and an epoch of its own at a time, each pair once:
        seen = np.bincount(indices[here] - first, minlength=pairs)
        assert seen.min() == epochs * share // pairs and seen.max() == -(-epochs * share // pairs)
        told = set(zip(own_epochs[here].tolist(), indices[here].tolist(), strict=True))
        assert len(told) == here.sum()  # no two of the same epoch: crops differ
        first += pairs


def test_every_stretch_of_a_mixture_has_every_source():
    order = Order([[400], [40] * 5, [100]], [1.0, 1.0, 1.0], seed=0)
    _, indices = order.samples(0, order.pairs)
    sources = np.searchsorted([400, 600], indices, side="right").reshape(-1, 35)
    counts = np.stack([(sources == source).sum(axis=1) for source in range(3)])
    assert (counts.min(axis=1) >= [15, 6, 2]).all()  # of 20, 10 and 5 expected


def test_a_window_is_a_few_parts():
    order = Order([[10] * 100], [1.0], seed=0)
    assert order.stocks[0].windows == 20
    _, indices = order.samples(0, 1000)
    parts = (indices // 10).reshape(20, 50)
    assert all(len(set(window)) == 5 for window in parts)  # reading stays inside five shards
    assert len({tuple(sorted(set(window))) for window in parts}) == 20
    orders = [tuple(window) for window in indices.reshape(20, 50) % 10]
    assert len(set(orders)) == 20


def test_epochs_and_seeds_differ():
    orders = [
        tuple(Order([[20] * 5], [1.0], seed=seed).samples(epoch * 100, 100)[1])
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len(set(orders)) == 9


def test_ten_billion_pairs_need_no_array(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "WINDOW", 65_536)
    order = Order([[100_000] * 100_000], [1.0], seed=0)
    assert order.pairs == 10**10
    _, indices = order.samples(9_999_990_000, 20_000)  # over the end of an epoch
    assert len(set(indices[:10_000])) == 10_000 and indices.max() < 10**10
    shuffled = quality(order)
    assert abs(shuffled["position_correlation"]) < 2 * shuffled["by_chance"] and shuffled["window_pairs"] == 100_000


def test_the_quality_of_a_bad_order_shows():
    class Sorted(Order):
        def at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return np.divmod(places, self.pairs)

    assert quality(Sorted([[100] * 9], [1.0], seed=0))["position_correlation"] == pytest.approx(1)
    for counts in ([100] * 9, [900]):
        fine = quality(Order([counts], [1.0], seed=0))
        assert abs(fine["position_correlation"]) < 1.5 * fine["by_chance"]


def test_draws_are_uniform_and_independent_of_each_other():
    epochs, index = np.divmod(np.arange(40_000), 400)
    x, y = uniform(0, "across", epochs, index), uniform(0, "down", epochs, index)
    assert x.min() >= 0 and x.max() < 1
    # 20 cells of 2,000 expected; the chi-squared statistic with 19 degrees of freedom is below 43.8 with p = 0.999
    for draws in (x, y):
        counts = np.histogram(draws, bins=20, range=(0, 1))[0]
        assert ((counts - 2000) ** 2 / 2000).sum() < 43.8
    for a, b in ((x, y), (x[:-1], x[1:]), (x[:-400], x[400:])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.02  # 4 standard deviations of 1 / sqrt(40,000)


def test_a_draw_is_the_same_alone_and_in_a_batch():
    index = np.arange(50)
    together = uniform(3, "area", np.full(50, 7), index)
    assert [float(uniform(3, "area", 7, int(i))) for i in index] == together.tolist()
