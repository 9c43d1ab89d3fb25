import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from limn.data.order import permutation, samples, uniform


@given(seed=st.integers(0, 2**32), epoch=st.integers(0, 1000), count=st.integers(1, 300))
def test_an_epoch_is_every_sample_once(seed: int, epoch: int, count: int):
    assert sorted(permutation(seed, epoch, count)) == list(range(count))


@given(seed=st.integers(0, 100), count=st.integers(1, 50), sizes=st.lists(st.integers(1, 20), min_size=1, max_size=12))
def test_the_stream_does_not_depend_on_how_it_is_cut(seed: int, count: int, sizes: list[int]):
    epochs, indices = samples(seed, 0, sum(sizes), count)
    first = 0
    for size in sizes:
        part = samples(seed, first, size, count)
        assert np.array_equal(part[0], epochs[first : first + size])
        assert np.array_equal(part[1], indices[first : first + size])
        first += size


def test_epochs_and_seeds_differ():
    orders = [tuple(permutation(seed, epoch, 100)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9


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
