"""Random changes to training images stay within what the settings allow."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from rnn_train.augment import COLOUR_CHANGE, LARGEST_SCALE, augment, blur, crop_and_turn, recolor
from rnn_train.settings import AUGMENT_PARTS, AugmentPart, TrainSettings


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
    parts=st.lists(st.sampled_from(AUGMENT_PARTS)).map(tuple),
)
def test_shape_and_dtype_are_kept(
    shape: tuple[int, int, int, int], shift: int, flip: bool, parts: tuple[AugmentPart, ...]
) -> None:
    images = random_images(*shape)

    changed = augment(images, TrainSettings(shift=shift, flip=flip, augment=parts))

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

    augment(images, TrainSettings(shift=2, flip=True, augment=AUGMENT_PARTS))

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

    # an image of one color, moved by a pixel, keeps its centre
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


def photo(height: int = 40, width: int = 60, channels: int = 3) -> Tensor:
    """A batch of one smooth image, float32, 0 to 255."""
    noise = random_images(1, height, width, channels).permute(0, 3, 1, 2).float()
    blurred: Tensor = reference.gaussian_blur(noise, [5, 5])
    return blurred


@pytest.mark.parametrize("angle", [-10.0, 3.0, 10.0])
def test_turning_is_that_of_torchvision(angle: float) -> None:
    images = photo()

    turned = crop_and_turn(images, torch.ones(2, 1), torch.zeros(2, 1), torch.tensor([angle]))

    expected = reference.rotate(images, angle, interpolation=InterpolationMode.BILINEAR)
    middle = (..., slice(12, 28), slice(15, 45))  # at the edges, torchvision fills with 0
    torch.testing.assert_close(turned[middle], expected[middle], rtol=0, atol=0.01)


@pytest.mark.parametrize(("top", "left"), [(0, 0), (2, 24), (20, 30)])
def test_cropping_is_that_of_torchvision(top: int, left: int) -> None:
    images = photo()
    centers = torch.tensor([[2 * (top + 10) / 40 - 1], [2 * (left + 15) / 60 - 1]])

    cropped = crop_and_turn(images, torch.full((2, 1), 0.5), centers, torch.zeros(1))

    expected = reference.resized_crop(images, top, left, 20, 30, [40, 60], antialias=False)
    middle = (..., slice(2, -2), slice(2, -2))  # at its edges, torchvision's crop doesn't see its neighbours
    torch.testing.assert_close(cropped[middle], expected[middle], rtol=0, atol=0.01)


@pytest.mark.parametrize("factor", [1 - COLOUR_CHANGE, 1.0, 1 + COLOUR_CHANGE])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_colors_change_as_in_torchvision(channels: int, place: int, factor: float) -> None:
    images = photo(channels=channels).round()
    factors = [torch.ones(1), torch.ones(1), torch.ones(1)]
    factors[place] = torch.tensor([factor])

    changed = recolor(images, *factors)

    adjust = (reference.adjust_brightness, reference.adjust_contrast, reference.adjust_saturation)[place]
    expected = adjust(images.to(torch.uint8), factor).float()  # which rounds down, on the way and at the end
    torch.testing.assert_close(changed, expected, rtol=0, atol=1.5)


@pytest.mark.parametrize("channels", [1, 3])
def test_each_photo_is_changed_on_its_own(channels: int) -> None:
    torch.manual_seed(0)
    images = random_images(1, 16, 12, channels).expand(20, -1, -1, -1)

    changed = augment(images, TrainSettings(augment=AUGMENT_PARTS))

    assert len({image.numpy().tobytes() for image in changed}) == 20


@pytest.mark.parametrize("deviation", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_blurring_is_that_of_torchvision(channels: int, deviation: float) -> None:
    images = photo(channels=channels).repeat(2, 1, 1, 1)

    blurred = blur(images, torch.tensor([deviation, 0.0]))

    middle = (..., slice(2, -2), slice(2, -2))  # beyond its edge, torchvision mirrors the image
    expected = reference.gaussian_blur(images, [5, 5], [deviation, deviation]) if deviation else images
    torch.testing.assert_close(blurred[0][middle], expected[0][middle], rtol=0, atol=0.01)
    torch.testing.assert_close(blurred[1], images[1])


def disks(count: int) -> Tensor:
    """Bright disks in the middle of a dark ground, 40 and 200, uint8, shape `(count, 32, 32, 3)`."""
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    disk = ((y - 15.5) ** 2 + (x - 15.5) ** 2 < 64).to(torch.uint8) * 160 + 40
    return disk[None, :, :, None].expand(count, -1, -1, 3)


def bright_shares(images: Tensor) -> Tensor:
    return (images.float().mean(dim=3) > 120).float().mean(dim=(1, 2))


def test_only_the_parts_that_were_chosen_change_an_image() -> None:
    torch.manual_seed(0)
    images, share = disks(100), bright_shares(disks(1))
    changed = {part: augment(images, TrainSettings(augment=(part,))) for part in AUGMENT_PARTS}

    inside, at_edge = (slice(None), 15, 15, 0), (slice(None), 0, 0, 0)
    for part in ("rotation", "scale", "blur"):
        assert (changed[part][inside] == 200).all()
        assert (changed[part][at_edge] == 40).all()
    assert (bright_shares(changed["rotation"]) - share).abs().max() < 0.02
    scaled = (bright_shares(changed["scale"]) / share).sqrt()
    assert 1 / LARGEST_SCALE - 0.05 < scaled.min() < 0.9
    assert 1.1 < scaled.max() < LARGEST_SCALE + 0.05
    recolored = changed["color"]
    assert all(len(image.unique()) == 2 for image in recolored)
    is_inverted = (changed["invert"] == 255 - images).flatten(1).all(dim=1)
    assert ((changed["invert"] == images).flatten(1).all(dim=1) ^ is_inverted).all()
    assert 20 < is_inverted.sum() < 80


def test_photos_stay_recognizable() -> None:
    """A bright disk on a dark ground stays one: about as large, and not moved out of the image."""
    torch.manual_seed(0)

    changed = augment(disks(200), TrainSettings(augment=("crop", "rotation", "color")))

    bright = (changed.float().mean(dim=3) > 100).float().mean(dim=(1, 2))
    share = 64 * torch.pi / 32**2
    # Crops enlarge it, by no more than 1 / 0.6.
    assert bright.min() > 0.5 * share
    assert bright.max() < 2 * share
    assert bright.mean() > share
