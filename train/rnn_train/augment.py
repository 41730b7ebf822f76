"""Random changes to a batch of training images, so that no epoch shows the same ones."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from rnn_train.settings import TrainSettings


def augment(images: Tensor, settings: TrainSettings) -> Tensor:
    """Shift and mirror each image of a batch on its own, as far as the settings say.

    Args:
        images: uint8, shape `(batch, height, width, channels)`.
        settings: `shift` and `flip` are looked at.

    Returns:
        The same shape and dtype. Random numbers come from torch's default CPU generator.
    """
    if settings.flip:
        mirrored = (torch.rand(len(images), 1, 1, 1) < 0.5).to(images.device)
        images = torch.where(mirrored, images.flip(2), images)
    if settings.shift:
        images = _shift(images, settings.shift)
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
