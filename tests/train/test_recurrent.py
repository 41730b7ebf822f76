"""Training steps on the CPU compute what `nn.RNN` and `nn.GRU` do, but for rounding."""

import copy
import itertools
import pickle
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rnn_runtime.model.spec import ImageSpec, ModelSpec
from rnn_train import DataSource, TrainSettings
from rnn_train.checkpoint import Checkpoint
from rnn_train.model import ImageRNN
from rnn_train.recurrent import Memory, has_function, last_outputs, one_thread
from tests.support.idx_files import write_idx_folder
from tests.support.training import Recorder, train_quietly

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


@pytest.mark.parametrize(("cell", "num_layers", "bidirectional"), [kind[:3] for kind in KINDS if not kind[3]])
def test_outputs_and_gradients_are_those_of_torchs_module(cell: str, num_layers: int, bidirectional: bool) -> None:
    net = make_net(cell, 28, 32, num_layers=num_layers, bidirectional=bidirectional)
    inputs = torch.rand(20, 28, 28)

    theirs = stock_outputs(net, inputs)
    ours = last_outputs(net, inputs, Memory())

    assert_close([ours], [theirs], 2e-6)
    assert_close(gradients(ours, of=net), gradients(theirs, of=net), 1e-5)


def test_dropout_between_layers_drops_its_share_and_scales_the_rest() -> None:
    net = make_net("relu", 1, 64, num_layers=2, dropout=0.3)
    with torch.no_grad():
        for weight in net.parameters():
            weight.zero_()
        # The first layer's outputs are 1 then, and the second one's are the mask.
        net.get_parameter("bias_ih_l0").fill_(1.0)
        net.get_parameter("weight_ih_l1").copy_(torch.eye(64))
    torch.manual_seed(0)

    first, second = (last_outputs(net, torch.rand(100, 2, 1), Memory()) for _ in range(2))

    kept = first != 0
    assert torch.equal(first, kept / 0.7)
    share = 1 - kept.float().mean().item()
    assert abs(share - 0.3) < 5 * (0.3 * 0.7 / kept.numel()) ** 0.5
    assert not torch.equal(first, second)
    assert not torch.equal(kept[:50], kept[50:])  # parts of the batch draw for themselves


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
        with one_thread():
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


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("batch", [1, 31, 32, 33, 191, 192, 400, 3200])
def test_parts_of_a_batch_add_up(cell: str, batch: int) -> None:
    net = make_net(cell, num_layers=2, bidirectional=True).double()
    inputs = torch.randn(batch, 4, 3, dtype=torch.float64, requires_grad=True)

    ours, theirs = last_outputs(net, inputs, Memory()), stock_outputs(net, inputs)

    assert_close([ours], [theirs], 1e-13)
    assert_close(gradients(ours, inputs, of=net), gradients(theirs, inputs, of=net), 1e-12)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("steps", [127, 128, 129, 300])
def test_tall_images_are_computed_in_pieces(cell: str, steps: int) -> None:
    net = make_net(cell, num_layers=2, bidirectional=True).double()
    inputs = torch.randn(3, steps, 3, dtype=torch.float64, requires_grad=True)

    ours, theirs = last_outputs(net, inputs, Memory()), stock_outputs(net, inputs)

    assert_close([ours], [theirs], 1e-13)
    assert_close(gradients(ours, inputs, of=net), gradients(theirs, inputs, of=net), 1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_an_autograd_graph_that_is_kept_gives_its_gradients_again(cell: str) -> None:
    net = make_net(cell, num_layers=2)
    outputs = last_outputs(net, torch.randn(40, 5, 3), Memory()).sum()

    first, second = (torch.autograd.grad(outputs, list(net.parameters()), retain_graph=True) for _ in range(2))

    assert all(torch.equal(mine, theirs) for mine, theirs in zip(first, second, strict=True))
    assert all(gradient.abs().max() > 0 for gradient in first)


def test_weights_may_change_between_forward_and_backward() -> None:
    net = make_net("gru")
    inputs = torch.randn(4, 5, 3)
    expected = gradients(last_outputs(net, inputs, Memory()), of=net)
    outputs = last_outputs(net, inputs, Memory())
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(2)

    assert_close(gradients(outputs, of=net), expected, 0)


def test_a_model_trains_without_onnxruntime(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = DataSource(data=str(write_idx_folder(tmp_path / "data", train=60)))
    run = TrainSettings(cell="gru", hidden_size=8, batch_size=40)
    train_quietly(tmp_path / "with.pt", source, run)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it weren't installed
    told = Recorder()

    train_quietly(tmp_path / "without.pt", source, run, callback=told)

    assert [text for text in told.notes if "onnxruntime can't be imported, so torch's modules train" in text]
    ours, stock = (Checkpoint.load(tmp_path / f"{name}.pt").weights for name in ("with", "without"))
    assert_close(list(ours.values()), list(stock.values()), 1e-5)
    assert not all(torch.equal(ours[name], stock[name]) for name in ours)


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


def test_what_is_left_of_onnxruntime_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    net = make_net("gru")
    assert has_function(net)
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))

    assert not has_function(net)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("cell", ["rnn", "gru"])
def test_a_model_that_has_trained_can_be_copied(cell: Any, copied: Any) -> None:
    spec = ModelSpec(ImageSpec(6, 5, 1), ("a", "b", "c"), cell, hidden_size=8)
    model, images = ImageRNN(spec), torch.randint(0, 256, (7, 6, 5, 1), dtype=torch.uint8)
    model(images).sum().backward()

    other = copied(model)

    first, second = (gradients(each(images), of=each) for each in (model, other))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("batch", [0, 3])
def test_every_dtype_and_an_empty_batch_have_logits_in_training(dtype: torch.dtype, batch: int) -> None:
    spec = ModelSpec(ImageSpec(6, 5, 1), ("a", "b", "c"), "gru", hidden_size=8)

    logits = ImageRNN(spec).to(dtype).train()(torch.zeros(batch, 6, 5, 1, dtype=torch.uint8))

    assert logits.shape == (batch, 3)
    assert logits.dtype == dtype


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("cell", ["rnn", "gru"])
def test_trained_weights_do_not_depend_on_the_number_of_threads(tmp_path: Any, cell: Any) -> None:
    source = DataSource(data=str(write_idx_folder(tmp_path / "data", train=60)))
    run = TrainSettings(cell=cell, hidden_size=8, epochs=2, batch_size=16, dropout=0.2, clip_norm=1.0)
    weights = []
    for count in (1, 2):
        torch.set_num_threads(count)
        train_quietly(tmp_path / f"{count}" / "model.pt", source, run)
        weights.append(Checkpoint.load(tmp_path / f"{count}" / "model.pt").weights)

    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
