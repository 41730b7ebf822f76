"""Random changes to training images stay within what the settings allow."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rnn_train.augment import augment
from rnn_train.settings import TrainSettings


def random_images(batch: int, height: int, width: int, channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    # without 0, so that a border of zeros can be told from the image
    return torch.randint(1, 256, (batch, height, width, channels), dtype=torch.uint8, generator=generator)


def shifted(image: Tensor, down: int, right: int) -> Tensor:
    """The image moved by so many pixels, pixel by pixel."""
    height, width, _ = image.shape
    result = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            if 0 <= y - down < height and 0 <= x - right < width:
                result[y, x] = image[y - down, x - right]
    return result


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3])),
    shift=st.integers(0, 3),
    flip=st.booleans(),
)
def test_shape_and_dtype_are_kept(shape: tuple[int, int, int, int], shift: int, flip: bool) -> None:
    images = random_images(*shape)

    changed = augment(images, TrainSettings(shift=shift, flip=flip))

    assert changed.shape == images.shape
    assert changed.dtype == torch.uint8


def test_nothing_changes_without_settings() -> None:
    images = random_images(4, 8, 6, 1)
    before = torch.get_rng_state()

    changed = augment(images, TrainSettings())

    assert torch.equal(changed, images)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_images_that_were_given_stay_as_they_are() -> None:
    images = random_images(20, 8, 6, 3)
    copy = images.clone()

    augment(images, TrainSettings(shift=2, flip=True))

    assert torch.equal(images, copy)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("most", [1, 2])
def test_images_move_by_every_distance_up_to_shift_and_no_more(most: int, channels: int) -> None:
    torch.manual_seed(0)
    images = random_images(1, 5, 4, channels).expand(400, -1, -1, -1)
    distances = [(down, right) for down in range(-most, most + 1) for right in range(-most, most + 1)]
    allowed = torch.stack([shifted(images[0], *distance) for distance in distances])

    changed = augment(images, TrainSettings(shift=most))

    matches = (changed[:, None] == allowed[None]).all(dim=(2, 3, 4))
    assert matches.any(dim=1).all()
    assert matches.any(dim=0).all()


def test_each_image_of_a_batch_is_moved_within_its_own_place() -> None:
    torch.manual_seed(0)
    images = torch.arange(1, 101, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 3, 1)

    changed = augment(images, TrainSettings(shift=1, flip=True))

    # an image of one colour, moved by a pixel, keeps its centre
    assert torch.equal(changed[:, 1, 1, 0], images[:, 1, 1, 0])


def test_half_of_the_images_are_mirrored_from_left_to_right() -> None:
    torch.manual_seed(0)
    images = random_images(200, 4, 5, 3)

    changed = augment(images, TrainSettings(flip=True))

    same = (changed == images).flatten(1).all(dim=1)
    mirrored = (changed == images.flip(dims=[2])).flatten(1).all(dim=1)
    assert (same ^ mirrored).all()
    assert 60 < mirrored.sum() < 140


def test_the_same_seed_gives_the_same_changes() -> None:
    images = random_images(50, 8, 8, 1)
    settings = TrainSettings(shift=2, flip=True)
    results = []

    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        results.append(augment(images, settings))

    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
