"""Training steps on the CPU compute what `nn.RNN` and `nn.GRU` do, but for rounding."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rnn_runtime.model.spec import ImageSpec, ModelSpec
from rnn_train import DataSource, TrainSettings, train
from rnn_train.checkpoint import Checkpoint
from rnn_train.model import ImageRNN
from rnn_train.recurrent import Memory, has_function, last_outputs, one_thread, step_threads
from tests.support.idx_files import write_idx_folder

CELLS = ("tanh", "relu", "gru")
KINDS = list(itertools.product(CELLS, (1, 2, 3), (False, True), (0.0, 0.4)))


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts back torch's number of threads after a test that changes it."""
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


def make_net(cell: str, features: int = 3, hidden: int = 4, seed: int = 0, **options: Any) -> nn.RNNBase:
    torch.manual_seed(seed)
    if options.get("num_layers", 1) == 1:
        options["dropout"] = 0.0
    if cell == "gru":
        return nn.GRU(features, hidden, batch_first=True, **options)
    return nn.RNN(features, hidden, batch_first=True, nonlinearity=cell, **options)


def stock_outputs(net: nn.RNNBase, inputs: Tensor) -> Tensor:
    _, state = net(inputs)
    last: Tensor = state[-2:] if net.bidirectional else state[-1:]
    return last.transpose(0, 1).flatten(start_dim=1)


def gradients(outputs: Tensor, *others: Tensor, of: nn.Module) -> list[Tensor]:
    weights = torch.linspace(-1, 2, outputs.numel(), dtype=outputs.dtype).view_as(outputs)
    return list(torch.autograd.grad((outputs * weights).sum(), [*others, *of.parameters()]))


def assert_close(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        mine, other = mine.detach(), other.detach()
        assert (mine - other).abs().max() <= tolerance * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize(("cell", "num_layers", "bidirectional", "dropout"), KINDS)
def test_gradients_are_the_derivatives(cell: str, num_layers: int, bidirectional: bool, dropout: float) -> None:
    net = make_net(cell, 2, 2, num_layers=num_layers, bidirectional=bidirectional, dropout=dropout).double()
    inputs = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    memory = Memory()

    def outputs(inputs: Tensor, *_: Tensor) -> Tensor:
        torch.manual_seed(1)  # the same dropout in each call
        return last_outputs(net, inputs, memory)

    assert torch.autograd.gradcheck(outputs, (inputs, *net.parameters()))


@pytest.mark.parametrize(("cell", "num_layers", "bidirectional", "dropout"), KINDS)
def test_outputs_and_gradients_are_those_of_torchs_module(
    cell: str, num_layers: int, bidirectional: bool, dropout: float
) -> None:
    net = make_net(cell, 28, 32, num_layers=num_layers, bidirectional=bidirectional, dropout=dropout)
    inputs = torch.rand(20, 28, 28)

    torch.manual_seed(1)
    theirs = stock_outputs(net, inputs)
    torch.manual_seed(1)
    ours = last_outputs(net, inputs, Memory())

    assert_close([ours], [theirs], 2e-6)
    assert_close(gradients(ours, of=net), gradients(theirs, of=net), 1e-5)


@settings(deadline=None, max_examples=60)
@given(
    cell=st.sampled_from(CELLS),
    batch=st.integers(1, 6),
    steps=st.integers(1, 6),
    features=st.integers(1, 5),
    hidden=st.integers(1, 6),
    num_layers=st.integers(1, 3),
    bidirectional=st.booleans(),
)
def test_every_shape_has_the_gradients_of_torchs_module(
    cell: str, batch: int, steps: int, features: int, hidden: int, num_layers: int, bidirectional: bool
) -> None:
    net = make_net(cell, features, hidden, num_layers=num_layers, bidirectional=bidirectional).double()
    inputs = torch.randn(batch, steps, features, dtype=torch.float64, requires_grad=True)

    ours, theirs = last_outputs(net, inputs, Memory()), stock_outputs(net, inputs)

    assert_close([ours], [theirs], 1e-13)
    assert_close(gradients(ours, inputs, of=net), gradients(theirs, inputs, of=net), 1e-12)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("cell", CELLS)
def test_no_bit_depends_on_the_number_of_threads(cell: str) -> None:
    net = make_net(cell, 28, 64, num_layers=2, bidirectional=True)
    inputs = torch.rand(50, 28, 28)
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        with step_threads(net, len(inputs)):
            outputs = last_outputs(net, inputs, Memory())
            found.append([outputs, *gradients(outputs, of=net)])
        assert torch.get_num_threads() == count

    for other in found[1:]:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(found[0], other, strict=True))


@pytest.mark.parametrize("cell", CELLS)
def test_a_pass_in_used_buffers_is_one_in_new_ones(cell: str) -> None:
    net, used = make_net(cell, num_layers=2), Memory()
    batches = [torch.randn(batch, 5, 3) for batch in (4, 4, 2, 4)]

    for inputs in batches:
        again, new = last_outputs(net, inputs, used), last_outputs(net, inputs, Memory())

        assert torch.equal(again, new)
        for mine, theirs in zip(gradients(again, of=net), gradients(new, of=net), strict=True):
            assert torch.equal(mine, theirs)


def test_two_passes_may_be_under_way_at_once() -> None:
    net, memory = make_net("gru"), Memory()
    first, second = torch.randn(2, 4, 5, 3)
    expected = [gradients(stock_outputs(net, inputs), of=net) for inputs in (first, second)]

    outputs = [last_outputs(net, inputs, memory) for inputs in (first, second)]

    for passed, theirs in reversed(list(zip(outputs, expected, strict=True))):
        assert_close(gradients(passed, of=net), theirs, 1e-5)


def test_going_back_through_buffers_that_hold_another_pass_is_an_error() -> None:
    net, memory = make_net("tanh"), Memory()
    inputs = torch.randn(4, 5, 3)
    first = last_outputs(net, inputs, memory).sum()
    first.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    last_outputs(net, 2 * inputs, memory)

    with pytest.raises(RuntimeError, match="another forward pass has used the buffers"):
        first.backward()  # type: ignore[no-untyped-call]


@pytest.mark.usefixtures("threads")
def test_threads_are_as_before_after_an_error() -> None:
    torch.set_num_threads(2)

    @one_thread()
    def fail() -> None:
        raise ValueError(torch.get_num_threads())

    with pytest.raises(ValueError, match="1"):
        fail()

    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("threads")
def test_large_products_are_shared_by_torchs_threads() -> None:
    torch.set_num_threads(2)
    net = make_net("gru", hidden=256)

    counts = []
    for batch in (32, 64):
        with step_threads(net, batch):
            counts.append(torch.get_num_threads())

    assert counts == [1, 2]


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_model_trains_with_the_gradients_of_its_evaluation(cell: Any, bidirectional: bool) -> None:
    torch.manual_seed(0)
    spec = ModelSpec(ImageSpec(6, 5, 1), ("a", "b", "c"), cell, hidden_size=8, bidirectional=bidirectional)
    model = ImageRNN(spec)
    images = torch.randint(0, 256, (7, 6, 5, 1), dtype=torch.uint8)

    training, evaluation = model.train()(images), model.eval()(images)

    assert has_function(model.rnn) is (cell != "lstm")
    assert_close([training], [evaluation], 1e-6)
    assert_close(gradients(training, of=model), gradients(evaluation, of=model), 1e-5)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("cell", ["rnn", "gru"])
def test_trained_weights_do_not_depend_on_the_number_of_threads(tmp_path: Any, cell: Any) -> None:
    source = DataSource(data=str(write_idx_folder(tmp_path / "data", train=60)))
    run = TrainSettings(cell=cell, hidden_size=8, epochs=2, batch_size=16, dropout=0.2, clip_norm=1.0)
    weights = []
    for count in (1, 2):
        torch.set_num_threads(count)
        train(source, run, tmp_path / f"{count}" / "model.pt", device="cpu", plots=False)
        weights.append(Checkpoint.load(tmp_path / f"{count}" / "model.pt").weights)

    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
