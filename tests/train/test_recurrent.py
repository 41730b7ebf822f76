"""Training steps on the CPU compute what `nn.RNN` and `nn.GRU` do, but for rounding."""

import copy
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
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
from rnn_train.recurrent import OnnxruntimeSteps, choose_computation
from tests.support.commands import Run
from tests.support.idx_files import write_idx_folder
from tests.support.training import train_quietly

CELLS = ("tanh", "relu", "gru")


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


def gradients(outputs: Tensor, of: nn.Module) -> list[Tensor]:
    weights = torch.linspace(-1, 2, outputs.numel(), dtype=outputs.dtype).view_as(outputs)
    return list(torch.autograd.grad((outputs * weights).sum(), list(of.parameters())))


def assert_close(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        mine, other = mine.detach(), other.detach()
        assert (mine - other).abs().max() <= tolerance * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize(("num_layers", "bidirectional", "dropout"), [(1, False, 0.0), (2, True, 0.4)])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_the_derivatives(cell: str, num_layers: int, bidirectional: bool, dropout: float) -> None:
    net = make_net(cell, 2, 2, num_layers=num_layers, bidirectional=bidirectional, dropout=dropout).double()
    inputs = torch.randn(2, 3, 2, dtype=torch.float64)
    steps = OnnxruntimeSteps(net)

    def outputs(*_: Tensor) -> Tensor:
        torch.manual_seed(1)  # the same dropout in each call
        return steps(inputs)

    assert torch.autograd.gradcheck(outputs, tuple(net.parameters()))


@pytest.mark.parametrize("cell", CELLS)
def test_outputs_and_gradients_in_float32_are_those_of_torchs_module(cell: str) -> None:
    net = make_net(cell, 28, 32, num_layers=2, bidirectional=True)
    inputs = torch.rand(20, 28, 28)

    theirs = stock_outputs(net, inputs)
    ours = OnnxruntimeSteps(net)(inputs)

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

    first, second = (OnnxruntimeSteps(net)(torch.rand(100, 2, 1)) for _ in range(2))

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
    inputs = torch.randn(batch, steps, features, dtype=torch.float64)

    ours, theirs = OnnxruntimeSteps(net)(inputs), stock_outputs(net, inputs)

    assert_close([ours], [theirs], 1e-13)
    assert_close(gradients(ours, of=net), gradients(theirs, of=net), 1e-12)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("cell", CELLS)
def test_no_bit_depends_on_the_number_of_threads(cell: str) -> None:
    net = make_net(cell, 28, 64, num_layers=2, bidirectional=True)
    inputs = torch.rand(50, 28, 28)
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        steps = OnnxruntimeSteps(net)
        with steps.threads():
            outputs = steps(inputs)
            found.append([outputs, *gradients(outputs, of=net)])
        assert torch.get_num_threads() == count

    for other in found[1:]:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(found[0], other, strict=True))


@pytest.mark.parametrize("cell", ["tanh", "gru"])
def test_a_pass_in_used_buffers_is_one_in_new_ones(cell: str) -> None:
    net = make_net(cell, num_layers=2)
    used = OnnxruntimeSteps(net)
    batches = [torch.randn(batch, 5, 3) for batch in (4, 4, 2, 4)]

    for inputs in batches:
        again, new = used(inputs), OnnxruntimeSteps(net)(inputs)

        assert torch.equal(again, new)
        for mine, theirs in zip(gradients(again, of=net), gradients(new, of=net), strict=True):
            assert torch.equal(mine, theirs)


def test_two_passes_may_be_under_way_at_once() -> None:
    net = make_net("gru")
    steps = OnnxruntimeSteps(net)
    first, second = torch.randn(2, 4, 5, 3)
    expected = [gradients(stock_outputs(net, inputs), of=net) for inputs in (first, second)]

    outputs = [steps(inputs) for inputs in (first, second)]

    for passed, theirs in reversed(list(zip(outputs, expected, strict=True))):
        assert_close(gradients(passed, of=net), theirs, 1e-5)


def test_going_back_through_buffers_that_hold_another_pass_is_an_error() -> None:
    steps = OnnxruntimeSteps(make_net("gru"))
    inputs = torch.randn(4, 5, 3)
    first = steps(inputs).sum()
    first.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    steps(2 * inputs)

    with pytest.raises(RuntimeError, match="another forward pass has used the buffers"):
        first.backward()  # type: ignore[no-untyped-call]


@pytest.mark.usefixtures("threads")
def test_threads_are_as_before_after_an_error() -> None:
    torch.set_num_threads(2)

    with pytest.raises(ValueError, match="1"), OnnxruntimeSteps(make_net("gru")).threads():
        raise ValueError(torch.get_num_threads())

    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("batch", "cell"), [(1, "gru"), (31, "tanh"), (32, "relu"), (191, "gru"), (192, "tanh"), (3200, "gru")]
)
def test_parts_of_a_batch_add_up(cell: str, batch: int) -> None:
    net = make_net(cell, num_layers=2, bidirectional=True).double()
    inputs = torch.randn(batch, 4, 3, dtype=torch.float64)

    ours, theirs = OnnxruntimeSteps(net)(inputs), stock_outputs(net, inputs)

    assert_close([ours], [theirs], 1e-13)
    assert_close(gradients(ours, of=net), gradients(theirs, of=net), 1e-12)


@pytest.mark.parametrize(("steps", "cell"), [(128, "tanh"), (129, "gru"), (300, "relu")])
def test_tall_images_are_computed_in_pieces(cell: str, steps: int) -> None:
    net = make_net(cell, num_layers=2, bidirectional=True).double()
    inputs = torch.randn(3, steps, 3, dtype=torch.float64)

    ours, theirs = OnnxruntimeSteps(net)(inputs), stock_outputs(net, inputs)

    assert_close([ours], [theirs], 1e-13)
    assert_close(gradients(ours, of=net), gradients(theirs, of=net), 1e-12)


def test_weights_may_change_between_forward_and_backward() -> None:
    net = make_net("gru")
    inputs = torch.randn(4, 5, 3)
    expected = gradients(OnnxruntimeSteps(net)(inputs), of=net)
    outputs = OnnxruntimeSteps(net)(inputs)
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(2)

    assert_close(gradients(outputs, of=net), expected, 0)


@pytest.mark.parametrize("missing", [["onnx"], ["onnxruntime"], ["onnx", "onnxruntime"]], ids=" and ".join)
def test_a_model_trains_without_onnx_or_onnxruntime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run, missing: list[str]
) -> None:
    write_idx_folder(tmp_path / "data", train=60)
    command = ["rnn-train", "--data", "data", "--cell", "gru", "--hidden-size", "8", "--batch-size", "40", "--no-plots"]
    assert run(*command, "--device", "cpu", "--output", "with/model.pt").returncode == 0
    for package in missing:
        monkeypatch.setitem(sys.modules, package, None)  # as if it weren't installed

    result = run(*command, "--device", "cpu", "--output", "without/model.pt")

    assert result.returncode == 0, result.stderr
    assert f"{' and '.join(missing)} can't be imported, so torch's modules train" in result.stderr
    ours, stock = (Checkpoint.load(tmp_path / name / "model.pt").weights for name in ("with", "without"))
    assert_close(list(ours.values()), list(stock.values()), 1e-5)
    assert not all(torch.equal(ours[name], stock[name]) for name in ours)


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_the_empty_folder_of_an_uninstalled_package_does_not_count(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = make_net("gru")
    assert choose_computation(net)[0]
    monkeypatch.setitem(sys.modules, missing, ModuleType(missing))

    steps, note = choose_computation(net)

    assert steps is None
    assert f"{missing} can't be imported" in str(note)


def test_torchs_modules_train_lstms_and_under_autocast() -> None:
    assert choose_computation(nn.LSTM(3, 4)) == (None, None)
    assert choose_computation(nn.GRU(3, 4), amp=True) == (None, None)


def test_a_model_trains_with_the_gradients_of_its_evaluation() -> None:
    torch.manual_seed(0)
    spec = ModelSpec(ImageSpec(6, 5, 1), ("a", "b", "c"), "gru", hidden_size=8, bidirectional=True)
    model = ImageRNN(spec)
    assert model.choose_computation() is None
    images = torch.randint(0, 256, (7, 6, 5, 1), dtype=torch.uint8)

    training, evaluation = model.train()(images), model.eval()(images)

    assert not torch.equal(training, evaluation)  # different computations
    assert_close([training], [evaluation], 1e-6)
    assert_close(gradients(training, of=model), gradients(evaluation, of=model), 1e-5)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_model_that_has_trained_can_be_copied(copied: Any) -> None:
    spec = ModelSpec(ImageSpec(6, 5, 1), ("a", "b", "c"), "gru", hidden_size=8)
    model, images = ImageRNN(spec), torch.randint(0, 256, (7, 6, 5, 1), dtype=torch.uint8)
    model.choose_computation()
    model(images).sum().backward()

    other = copied(model)

    first, second = (gradients(each(images), of=each) for each in (model, other))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("batch", [0, 3])
def test_every_dtype_and_an_empty_batch_have_logits_in_training(dtype: torch.dtype, batch: int) -> None:
    model = ImageRNN(ModelSpec(ImageSpec(6, 5, 1), ("a", "b", "c"), "gru", hidden_size=8)).to(dtype)
    model.choose_computation()

    logits = model.train()(torch.zeros(batch, 6, 5, 1, dtype=torch.uint8))

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
