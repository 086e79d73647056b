"""`PopulationStats`: statistics of a whole data set, gathered batch by batch, against the reference."""

import copy
import pickle

import numpy as np
import pytest
import reference
from cases import sample

import cbnorm

# Shapes of the batches, with uneven and empty ones, and the channel axis.
BATCHES = {
    "rows": ([(7, 3), (1, 3), (0, 3), (40, 3)], 1),
    "images": ([(2, 3, 4, 5), (3, 3, 4, 5), (1, 3, 2, 1), (2, 3, 0, 5)], 1),
    "channels last": ([(0, 4, 4, 3), (2, 4, 4, 3), (5, 4, 1, 3)], -1),
    "channels first": ([(3, 9), (3, 2), (3, 0)], 0),
    "one channel, any ndim": ([(5, 1), (2, 1, 3), (4, 1, 2, 2)], 1),
}
every_kind_of_batches = pytest.mark.parametrize(("shapes", "axis"), BATCHES.values(), ids=BATCHES.keys())


def make_batches(shapes, dtype=np.float64, offset=2.0):
    return [sample(shape, dtype, offset + number, seed=number) for number, shape in enumerate(shapes)]


def gather(batches, axis=1):
    gathered = cbnorm.PopulationStats(axis)
    for batch in batches:
        assert gathered.update(batch) is None
    return gathered


def state(gathered):
    """Everything that a PopulationStats says."""
    average = [part.tobytes() for part in gathered.batch_average()] if gathered.batches > 1 else None
    pooled = (gathered.mean.tobytes(), gathered.var().tobytes()) if gathered.count else None
    return gathered.axis, gathered.count, gathered.batches, pooled, average


@every_kind_of_batches
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_population_statistics(shapes, axis, dtype):
    batches = make_batches(shapes, dtype)
    gathered = gather(batches, axis)
    for ddof in (0, 1):
        mean, var = reference.pooled_statistics(batches, axis, ddof)
        np.testing.assert_allclose(gathered.mean, mean, rtol=1e-13)
        np.testing.assert_allclose(gathered.var(ddof), var, rtol=1e-13)
    mean, var = reference.batch_average(batches, axis)
    np.testing.assert_allclose(gathered.batch_average()[0], mean, rtol=1e-13)
    np.testing.assert_allclose(gathered.batch_average()[1], var, rtol=1e-13)
    assert gathered.batches == sum(batch.size > 0 for batch in batches)
    assert gathered.count == sum(batch.size for batch in batches) // batches[0].shape[axis]
    assert {part.dtype for part in (gathered.mean, gathered.var(), *gathered.batch_average())} == {np.dtype(float)}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_population_statistics_at_an_offset(dtype):
    batches = [sample((100, 3), dtype, offset=1e6, seed=seed) for seed in range(20)]
    whole = np.concatenate(batches).astype(np.longdouble)
    gathered = gather(batches)
    np.testing.assert_allclose(gathered.mean, whole.mean(axis=0).astype(float), rtol=1e-15)
    whole -= whole[0]
    np.testing.assert_allclose(gathered.var(), whole.var(axis=0).astype(float), rtol=1e-14)


def test_a_variance_fed_row_by_row_at_1e8_is_right():
    x = sample((5000, 3), offset=1e8)
    gathered = gather(np.split(x, len(x)))
    np.testing.assert_allclose(gathered.var(), (x - 1e8).var(axis=0), rtol=1e-13)
    np.testing.assert_allclose(gathered.var(), sum(gather([part]) for part in np.split(x, 50)).var(), rtol=1e-13)


@every_kind_of_batches
def test_population_statistics_merge(shapes, axis):
    batches = make_batches(shapes)
    whole, nothing = gather(batches, axis), cbnorm.PopulationStats(axis)
    for cut in range(len(batches) + 1):
        parts = gather(batches[:cut], axis), gather(batches[cut:], axis)
        before = [state(part) for part in parts]
        both = sum([nothing, *parts, nothing])
        assert (both.axis, both.count, both.batches) == (axis, whole.count, whole.batches)
        np.testing.assert_allclose(both.mean, whole.mean, rtol=1e-14)
        np.testing.assert_allclose(both.var(), whole.var(), rtol=1e-13)
        np.testing.assert_allclose(both.batch_average(), whole.batch_average(), rtol=1e-13)
        # The sum goes its own way afterwards, that of one as well.
        both.update(batches[0])
        for part in parts:
            sum([part]).update(batches[0])
        assert [state(part) for part in parts] == before
        assert state(nothing) == (axis, 0, 0, None, None)


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (np.ones(3), ValueError, "x: expected at least 2 dimensions, got shape (3,)"),
        (np.ones((5, 4)), ValueError, "x: expected 3 channels on axis 1, got shape (5, 4)"),
        (np.ones((0, 4)), ValueError, "x: expected 3 channels on axis 1, got shape (0, 4)"),
        (np.ones((3, 1)), ValueError, "x: expected 3 channels on axis 1, got shape (3, 1)"),
        (np.ones((5, 3), complex), TypeError, "x: expected real numbers"),
        (np.ma.ones((5, 3)), TypeError, "x: expected an array without a mask"),
        ([[1.0, 2.0, 3.0], [1.0]], ValueError, "x: expected an array of numbers, got list"),
        (None, TypeError, "x: expected real numbers"),
    ],
)
def test_a_bad_batch_changes_nothing(x, error, words):
    gathered = gather(make_batches([(7, 3), (2, 3)]))
    before = state(gathered)
    with pytest.raises(error) as failure:
        gathered.update(x)
    assert str(failure.value).startswith(words)
    assert state(gathered) == before


def test_bad_axis():
    for axis in (1.0, None, "1", (1,)):
        with pytest.raises(TypeError, match=r"^axis: expected an integer, got "):
            cbnorm.PopulationStats(axis)
    gathered = cbnorm.PopulationStats(2)
    with pytest.raises(ValueError, match=r"^axis: expected -2 to 1 for 2 dimensions, got 2$"):
        gathered.update(np.ones((5, 3)))
    assert state(gathered) == (2, 0, 0, None, None)


@pytest.mark.parametrize("shapes", [[], [(0, 3)], [(0, 3), (0, 3)]])
def test_reading_before_there_is_a_value(shapes):
    gathered = gather(make_batches(shapes))
    assert (gathered.count, gathered.batches) == (0, 0)
    for read in (lambda: gathered.mean, gathered.var):
        with pytest.raises(ValueError, match=r"^PopulationStats: expected at least one value a channel"):
            read()


@pytest.mark.parametrize("shapes", [[], [(7, 3)], [(7, 3), (0, 3)]])
def test_an_average_over_batches_needs_two(shapes):
    gathered = gather(make_batches(shapes))
    with pytest.raises(ValueError, match=f"^batch_average: expected at least 2 batches, got {len(shapes[:1])}$"):
        gathered.batch_average()


def test_population_statistics_do_not_merge_with_anything_else():
    three, four = gather([sample((5, 3))]), gather([sample((5, 4))])
    before = state(three), state(four)
    with pytest.raises(ValueError, match=r"^other: expected moments of shape \(3,\), got \(4,\)$"):
        three + four
    assert (state(three), state(four)) == before
    for other in (0, 1, cbnorm.moments(sample((5, 3))), np.zeros(3, int), None):
        with pytest.raises(TypeError):
            three + other


def test_what_was_read_stays_as_it_was():
    gathered = gather([sample((5, 3))])
    mean, var = gathered.mean, gathered.var()
    before = mean.tobytes(), var.tobytes()
    with pytest.raises(ValueError, match="read-only"):
        mean[:] = 0
    gathered.update(sample((9, 3), offset=5))
    assert (mean.tobytes(), var.tobytes()) == before
    assert gathered.mean.tobytes() != before[0]


@pytest.mark.parametrize("shapes", [[], [(0, 3)], [(7, 3), (2, 3)]])
def test_population_statistics_pickle_and_copy_exactly(shapes):
    gathered = gather(make_batches(shapes))
    twins = [pickle.loads(pickle.dumps(gathered)), copy.deepcopy(gathered)]
    for twin in twins:
        assert state(twin) == state(gathered)
    gathered.update(sample((4, 3), seed=9))
    for twin in twins:
        assert state(twin) != state(gathered)
        twin.update(sample((4, 3), seed=9))
        assert state(twin) == state(gathered)
