"""Checkpoints with random weights: export asks nothing more of one than training does."""

import torch

from rnn_runtime.model.spec import ModelSpec
from rnn_train.checkpoint import Checkpoint
from rnn_train.data import DataSource
from rnn_train.model import ImageRNN
from rnn_train.settings import TrainSettings


def random_checkpoint(spec: ModelSpec) -> Checkpoint:
    """A checkpoint as training would begin with, whose data is nowhere to be found."""
    torch.manual_seed(0)
    return Checkpoint(
        spec=spec,
        weights=ImageRNN(spec).state_dict(),
        settings=TrainSettings(),
        source=DataSource(data="no-such-folder"),
        metrics={"epochs": []},
        samples=torch.randint(0, 256, (16, *spec.image_spec.shape), dtype=torch.uint8),
        resume_state={},
    )
