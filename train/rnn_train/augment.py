"""Random changes to a batch of training images, so that no epoch shows the same ones."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from rnn_train.settings import AugmentPart, TrainSettings

# What `augment` draws for each image. The ranges are milder than those customary for ImageNet, whose nets are larger.
SMALLEST_AREA = 0.6  # of the crop, as a share of the image
LARGEST_RATIO = 4 / 3  # by which a crop may be wider or higher than the image, as in RandomResizedCrop
LARGEST_ANGLE = 10.0  # degrees, either way
LARGEST_SCALE = 1.25  # by which an image is enlarged or reduced
COLOUR_CHANGE = 0.3  # brightness, contrast and saturation are multiplied by 1 - 0.3 to 1 + 0.3
LARGEST_BLUR = 1.0  # pixels, the standard deviation
_LUMA = (0.2989, 0.587, 0.114)  # of red, green and blue in a gray value (ITU-R BT.601), as torchvision has it


def augment(images: Tensor, settings: TrainSettings) -> Tensor:
    """Change each image of a batch at random, independently of the others, as the settings allow.

    Args:
        images: uint8, shape `(batch, height, width, channels)`.
        settings: `augment`, `shift` and `flip` are used.

    Returns:
        The same shape and dtype. Random numbers come from torch's default CPU generator.
    """
    if settings.flip:
        mirrored = (torch.rand(len(images), 1, 1, 1) < 0.5).to(images.device)
        images = torch.where(mirrored, images.flip(2), images)
    if settings.shift:
        images = _shift(images, settings.shift)
    if settings.augment:
        images = _augment_parts(images, settings.augment)
    return images


def _shift(images: Tensor, most: int) -> Tensor:
    """Cut each image out of itself with a border of `most` zeros around it, at a random place."""
    batch, height, width, _ = images.shape
    padded = pad(images, (0, 0, most, most, most, most))
    corners = torch.randint(0, 2 * most + 1, (2, batch, 1)).to(images.device)
    rows = corners[0] + torch.arange(height, device=images.device)
    columns = corners[1] + torch.arange(width, device=images.device)
    which = torch.arange(batch, device=images.device)
    return padded[which[:, None, None], rows[:, :, None], columns[:, None, :]]


def _augment_parts(images: Tensor, parts: Sequence[AugmentPart]) -> Tensor:
    """Crop, scale, turn, blur, recolor and invert each image, as far as these parts were chosen.

    torchvision's `RandomResizedCrop`, `RandomRotation`, `ColorJitter` and the like draw one set of parameters per call,
    and a call per image takes as long as the training itself (docs/explanation/measurements.md). Here all images'
    parameters are drawn and applied in operations on the batch.
    """
    photos = images.permute(0, 3, 1, 2).float().contiguous()
    batch = len(photos)
    if not {"crop", "scale", "rotation"}.isdisjoint(parts):
        sizes, centers = _draw_crops(batch) if "crop" in parts else (torch.ones(2, batch), torch.zeros(2, batch))
        if "scale" in parts:
            most = math.log(LARGEST_SCALE)
            sizes = sizes * torch.exp(_draw(batch, -most, most))
        most = LARGEST_ANGLE if "rotation" in parts else 0.0
        photos = crop_and_turn(photos, sizes, centers, _draw(batch, -most, most))
    if "blur" in parts:
        photos = blur(photos, _draw(batch, 0, LARGEST_BLUR))
    if "color" in parts:
        photos = recolor(photos, *(_draw(batch, 1 - COLOUR_CHANGE, 1 + COLOUR_CHANGE) for _ in range(3)))
    if "invert" in parts:
        inverted = (torch.rand(batch, 1, 1, 1) < 0.5).to(photos.device)
        photos = torch.where(inverted, 255 - photos, photos)
    return photos.round().to(torch.uint8).permute(0, 2, 3, 1)


def crop_and_turn(photos: Tensor, sizes: Tensor, centers: Tensor, angles: Tensor) -> Tensor:
    """Turn each image about the center of a crop, and enlarge the crop to the image's size, in one interpolation.

    Args:
        photos: float32, shape `(batch, channels, height, width)`.
        sizes: Height and width of the crops as shares of the image's, shape `(2, batch)`. Above 1, it is reduced.
        centers: Their centers, -1 at the top or left to 1 at the bottom or right, shape `(2, batch)`.
        angles: Degrees counterclockwise, shape `(batch,)`.

    Returns:
        The same shape. What comes in from outside is the image mirrored at its edge.
    """
    height, width = photos.shape[2:]
    cos, sin = torch.cos(torch.deg2rad(angles)), torch.sin(torch.deg2rad(angles))
    (high, wide), (down, right) = sizes, centers
    # From the result's coordinates to the image's, both -1 to 1: scale to the crop, turn in pixels, move to its center.
    rows = (wide * cos, -high * sin * height / width, right, wide * sin * width / height, high * cos, down)
    matrices = torch.stack(rows, dim=1).reshape(-1, 2, 3).to(photos.device)
    grid = affine_grid(matrices, list(photos.shape), align_corners=False)
    return grid_sample(photos, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def blur(photos: Tensor, deviations: Tensor) -> Tensor:
    """Blur each image by a Gaussian of its own, over 5 pixels each way, as torchvision's `gaussian_blur` does.

    Args:
        photos: float32, shape `(batch, channels, height, width)`.
        deviations: Standard deviations in pixels, 0 or more, shape `(batch,)`.

    Returns:
        The same shape. Beyond its edge, an image goes on with the pixels of the edge.
    """
    distances = torch.arange(-2, 3)
    weights = torch.exp(-0.5 * (distances / deviations.clamp(min=1e-3)[:, None]) ** 2)
    kernels = (weights / weights.sum(dim=1, keepdim=True)).to(photos.device)
    for axis, border in ((2, (0, 0, 2, 2)), (3, (2, 2, 0, 0))):
        moved = pad(photos, border, mode="replicate").unfold(axis, 5, 1)
        photos = torch.einsum("bchwk,bk->bchw", moved, kernels)
    return photos


def recolor(photos: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Change brightness, then contrast, then saturation, as torchvision's `adjust_brightness` and the like define them.

    Args:
        photos: float32, shape `(batch, channels, height, width)`, 0 to 255.
        brightness: Factors, shape `(batch,)`; 0 gives black, 1 changes nothing.
        contrast: Factors, shape `(batch,)`; 0 gives each image its mean gray, 1 changes nothing.
        saturation: Factors, shape `(batch,)`; 0 gives gray, 1 changes nothing. Gray images have none.
    """
    bright, contrasty, saturated = (
        factor.to(photos.device)[:, None, None, None] for factor in (brightness, contrast, saturation)
    )
    photos = (bright * photos).clamp_(0, 255)
    photos = torch.lerp(_gray(photos).mean(dim=(1, 2, 3), keepdim=True), photos, contrasty).clamp_(0, 255)
    if photos.shape[1] == 1:
        return photos
    return torch.lerp(_gray(photos), photos, saturated).clamp_(0, 255)


def _gray(photos: Tensor) -> Tensor:
    if photos.shape[1] == 1:
        return photos
    red, green, blue = photos[:, :1], photos[:, 1:2], photos[:, 2:]
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


def _draw_crops(batch: int) -> tuple[Tensor, Tensor]:
    """Sizes and centers of crops that lie within the image: area and logarithm of the ratio are uniform."""
    area = _draw(batch, SMALLEST_AREA, 1).sqrt()
    ratio = torch.exp(_draw(batch, -math.log(LARGEST_RATIO), math.log(LARGEST_RATIO)) / 2)
    sizes = torch.stack([area / ratio, area * ratio]).clamp(max=1)
    centers = torch.stack([_draw(batch, -1, 1), _draw(batch, -1, 1)]) * (1 - sizes)
    return sizes, centers


def _draw(count: int, low: float, high: float) -> Tensor:
    return torch.empty(count).uniform_(low, high)
