"""The scenes: unambiguous, reproducible, with handwriting kept apart."""

import numpy as np
import pytest

from llava_sp.playground.scenes import CELL, HELD_OUT, SIZE, TRAIN, draw, generator, handwriting, sample_scene


@pytest.mark.parametrize("count", [None, 2, 3, 4, 6])
def test_a_scene_names_everything_unambiguously_in_reading_order(count):
    for index in range(50):
        things = sample_scene(generator(0, TRAIN, index), count)
        assert len(things) == count if count else 3 <= len(things) <= 5
        places = [3 * thing.row + thing.column for thing in things]
        assert places == sorted(set(places))
        assert len({thing.name for thing in things}) == len(things)
        assert {thing.is_digit for thing in things} == {True, False}


def test_a_scene_depends_on_its_seed_split_and_number_alone():
    def picture(seed, split, index):
        rng = generator(seed, split, index)
        return np.asarray(draw(sample_scene(rng), split, rng)[0])

    first = picture(3, TRAIN, 5)
    assert first.shape == (SIZE, SIZE, 3)
    assert np.array_equal(first, picture(3, TRAIN, 5))
    for other in [(4, TRAIN, 5), (3, HELD_OUT, 5), (3, TRAIN, 6)]:
        assert not np.array_equal(first, picture(*other))


def test_things_stay_within_their_places():
    for index in range(50):
        rng = generator(0, HELD_OUT, index)
        things = sample_scene(rng)
        _, boxes = draw(things, HELD_OUT, rng)
        for thing, (left, top, right, bottom) in zip(things, boxes, strict=True):
            assert thing.column * CELL <= left < right <= (thing.column + 1) * CELL
            assert thing.row * CELL <= top < bottom <= (thing.row + 1) * CELL


def test_no_handwriting_is_in_both_splits():
    def images(split):
        return {image.tobytes() for written in handwriting(split).values() for image in written}

    assert sum(len(written) for written in handwriting(TRAIN).values()) == 1437
    assert sum(len(written) for written in handwriting(HELD_OUT).values()) == 360
    assert all(len(written) > 20 for written in handwriting(HELD_OUT).values())
    assert not images(TRAIN) & images(HELD_OUT)
