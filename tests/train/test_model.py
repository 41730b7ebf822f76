"""The network is the article's, and its variants are what their names say."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rnn_runtime.model.spec import ImageSpec, ModelSpec
from rnn_train.model import ImageRNN

CELLS = ("rnn", "gru", "lstm")


class ArticleRNN(nn.Module):
    """The article's class, with the cell and the number of states left open."""

    def __init__(self, cell: str, input_size: int, hidden_size: int, num_layers: int, num_classes: int) -> None:
        super().__init__()
        kinds: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
        self.cell = cell
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.rnn = kinds[cell](input_size, hidden_size, num_layers, batch_first=True)
        self.fc = nn.Linear(hidden_size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        h0 = torch.zeros(self.num_layers, x.size(0), self.hidden_size)
        state = (h0, torch.zeros_like(h0)) if self.cell == "lstm" else h0
        out, _ = self.rnn(x, state)
        return self.fc(out[:, -1, :])  # type: ignore[no-any-return]


def spec_of(image: ImageSpec = ImageSpec(6, 5, 1), **others: Any) -> ModelSpec:  # noqa: B008
    normalization = {"mean": (0.0,) * image.channels, "std": (1.0,) * image.channels}
    return ModelSpec(image, ("a", "b", "c"), **({"hidden_size": 8} | normalization | others))


def random_images(spec: ModelSpec, batch: int = 7) -> Tensor:
    return torch.randint(0, 256, (batch, *spec.image_spec.shape), dtype=torch.uint8)


@pytest.mark.parametrize(
    "image", [ImageSpec(28, 28, 1), ImageSpec(5, 9, 1), ImageSpec(8, 6, 3), ImageSpec(1, 1, 1)], ids=str
)
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_logits_are_exactly_those_of_the_articles_class(cell: str, num_layers: int, image: ImageSpec) -> None:
    spec = spec_of(image, cell=cell, num_layers=num_layers, hidden_size=16)
    model = ImageRNN(spec).eval()
    article = ArticleRNN(cell, image.width * image.channels, 16, num_layers, 3)
    article.rnn.load_state_dict(model.rnn.state_dict())
    article.fc.load_state_dict(model.linear.state_dict())
    images = random_images(spec)

    logits = model(images)

    # the article's ToTensor() divides by 255; a row's pixels and their channels are a time step
    rows = (images.float() / 255).reshape(len(images), image.height, image.width * image.channels)
    assert torch.equal(logits, article(rows))


@pytest.mark.parametrize("cell", CELLS)
def test_initial_weights_are_the_articles_for_a_seed(cell: str) -> None:
    spec = spec_of(cell=cell, num_layers=2)
    torch.manual_seed(3)
    article = ArticleRNN(cell, 5, 8, 2, 3)

    torch.manual_seed(3)
    model = ImageRNN(spec)

    for ours, theirs in zip(model.state_dict().values(), article.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_bidirectional_reads_where_each_direction_ends(cell: str, num_layers: int) -> None:
    spec = spec_of(cell=cell, num_layers=num_layers, bidirectional=True)
    model = ImageRNN(spec).eval()
    images = random_images(spec)

    logits = model(images)

    out, _ = model.rnn((images.float() / 255).flatten(start_dim=2))
    forward_at_the_last_row, backward_at_the_first_row = out[:, -1, :8], out[:, 0, 8:]
    assert torch.equal(logits, model.linear(torch.cat([forward_at_the_last_row, backward_at_the_first_row], dim=1)))


@pytest.mark.parametrize(
    ("cell", "num_layers", "bidirectional", "channels"), list(product(CELLS, (1, 2, 3), (False, True), (1, 3)))
)
def test_logits_have_a_row_an_image_and_a_column_a_class(
    cell: str, num_layers: int, bidirectional: bool, channels: int
) -> None:
    spec = spec_of(ImageSpec(6, 5, channels), cell=cell, num_layers=num_layers, bidirectional=bidirectional)
    model = ImageRNN(spec)

    for batch in (1, 2, 7):
        logits = model(random_images(spec, batch))
        assert logits.shape == (batch, 3)
        assert logits.dtype == torch.float32


def test_relu_is_another_net_than_tanh() -> None:
    relu, tanh = ImageRNN(spec_of(nonlinearity="relu")), ImageRNN(spec_of())
    tanh.load_state_dict(relu.state_dict())
    images = random_images(relu.spec)

    assert relu.rnn.nonlinearity == "relu"
    assert not torch.equal(relu(images), tanh(images))


def test_pixels_are_normalized_channel_by_channel() -> None:
    image = ImageSpec(4, 3, 3)
    normalized = ImageRNN(spec_of(image, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))).eval()
    images = random_images(normalized.spec)

    logits = normalized(images)

    pixels = (images.float() / 255 - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.5, 0.6, 0.7])
    out, _ = normalized.rnn(pixels.flatten(start_dim=2))
    assert torch.equal(logits, normalized.linear(out[:, -1]))


@pytest.mark.parametrize("num_layers", [1, 2])
def test_dropout_works_in_training_only(num_layers: int) -> None:
    model = ImageRNN(spec_of(dropout=0.5, num_layers=num_layers))
    images = random_images(model.spec)

    training = [model.train()(images) for _ in range(2)]
    evaluation = [model.eval()(images) for _ in range(2)]

    assert not torch.equal(*training)
    assert torch.equal(*evaluation)


def test_one_layer_with_dropout_brings_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    ImageRNN(spec_of(dropout=0.5, num_layers=1))

    assert len(recwarn) == 0


def test_normalization_is_no_weight() -> None:
    # it stands in the description, and in the checkpoint's weights it could contradict that
    assert {name.split(".")[0] for name in ImageRNN(spec_of()).state_dict()} == {"rnn", "linear"}
