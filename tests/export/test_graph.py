"""The model file: valid ONNX, whole in one file, and readable to whoever opens it in a viewer."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

import rnn_runtime
from rnn_export import export_onnx
from rnn_export.export import TOLERANCES
from rnn_export.graph import GRAPHS, PRECISIONS, Graph, Precision, build_onnx_model
from rnn_runtime import Classifier
from rnn_runtime.checks.self_check import self_check
from rnn_runtime.errors import SettingsError
from rnn_runtime.model.file import FORMAT_VERSION
from rnn_runtime.model.spec import Cell, ImageSpec, ModelSpec, Nonlinearity
from rnn_train.checkpoint import Checkpoint
from tests.support.checkpoints import random_checkpoint


@pytest.fixture(params=["rnn", "gru", "lstm"])
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> onnx.ModelProto:
    spec = ModelSpec(ImageSpec(5, 4, 3), ("cat", "dog"), request.param, hidden_size=6, mean=(0.5,) * 3, std=(0.2,) * 3)
    random_checkpoint(spec).save(tmp_path / "model.pt")
    export_onnx(tmp_path / "model.pt", tmp_path / "model.onnx")
    return onnx.load(tmp_path / "model.onnx")


def test_checker_accepts_the_file_with_full_shape_inference(exported: onnx.ModelProto) -> None:
    onnx.checker.check_model(exported, full_check=True)

    inferred = onnx.shape_inference.infer_shapes(exported, check_type=True, strict_mode=True, data_prop=True)
    assert len(inferred.graph.value_info) >= len(exported.graph.node) - 2


def test_interface_is_raw_images_in_logits_and_probabilities_out(exported: onnx.ModelProto) -> None:
    def describe(value: onnx.ValueInfoProto) -> tuple[str, str, list[str | int]]:
        kind = value.type.tensor_type
        sides = [side.dim_param or side.dim_value for side in kind.shape.dim]
        return value.name, onnx.TensorProto.DataType.Name(kind.elem_type), sides

    assert [describe(value) for value in exported.graph.input] == [("images", "UINT8", ["batch", 5, 4, 3])]
    assert [describe(value) for value in exported.graph.output] == [
        ("logits", "FLOAT", ["batch", 2]),
        ("probabilities", "FLOAT", ["batch", 2]),
    ]


def test_no_weight_lies_outside_the_file(exported: onnx.ModelProto) -> None:
    assert exported.graph.initializer
    for tensor in exported.graph.initializer:
        assert tensor.data_location == onnx.TensorProto.DEFAULT
        assert not tensor.external_data


def test_every_node_is_named_for_what_it_computes(exported: onnx.ModelProto) -> None:
    names = [node.name for node in exported.graph.node]

    assert len(set(names)) == len(names)
    assert all(name.split(".")[0] in {"preprocessing", "pixels", "rnn", "logits", "probabilities"} for name in names)


def test_vanilla_rnn_is_written_as_gemm_steps(tmp_path: Path) -> None:
    spec = ModelSpec(ImageSpec(5, 4, 1), ("cat", "dog"), "rnn", hidden_size=6, num_layers=2)
    random_checkpoint(spec).save(tmp_path / "model.pt")

    report = export_onnx(tmp_path / "model.pt", tmp_path / "model.onnx")

    graph = onnx.load(tmp_path / "model.onnx").graph
    outputs = {output for node in graph.node for output in node.output}
    assert report.graph == "unrolled Gemm"
    assert {"rnn.0.step_3.hidden", "rnn.1.step_4.hidden"} <= outputs
    assert not {node.op_type for node in graph.node} & {"RNN", "Add", "MatMul"}


def vanilla_rnn(rows: int, nonlinearity: Nonlinearity, num_layers: int, bidirectional: bool) -> ModelSpec:
    return ModelSpec(
        ImageSpec(rows, 4, 3),
        ("cat", "dog"),
        "rnn",
        nonlinearity,
        hidden_size=6,
        num_layers=num_layers,
        bidirectional=bidirectional,
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
    )


@pytest.mark.parametrize(("cell", "precision"), [("rnn", "fp32"), ("gru", "fp16"), ("lstm", "fp32"), ("lstm", "int8")])
def test_a_viewer_finds_what_a_model_is(cell: Cell, precision: Precision) -> None:
    spec = ModelSpec(ImageSpec(5, 4, 3), ("a", "b"), cell, hidden_size=8, mean=(0.5,) * 3, std=(0.3,) * 3)
    weights = {name: tensor.numpy() for name, tensor in random_checkpoint(spec).weights.items()}

    model = build_onnx_model(spec, weights, precision=precision, temperature=1.5)

    assert (model.producer_name, model.producer_version) == ("rnn-onnx", rnn_runtime.__version__)
    assert (model.domain, model.model_version) == ("rnn-onnx", FORMAT_VERSION)
    assert model.doc_string.startswith(f"{spec.cell_name}, 2 layers of 8. It reads images of 5x4 row by row")
    assert all(value.doc_string for value in (*model.graph.input, *model.graph.output))
    assert not model.graph.value_info


@pytest.mark.parametrize(
    ("nonlinearity", "num_layers", "bidirectional"), [("tanh", 1, False), ("relu", 2, True), ("tanh", 3, False)]
)
@pytest.mark.parametrize(("form", "operator"), [("scan", "Scan"), ("operator", "RNN")])
def test_vanilla_rnn_in_another_form_computes_the_same(
    tmp_path: Path, form: Graph, operator: str, nonlinearity: Nonlinearity, num_layers: int, bidirectional: bool
) -> None:
    random_checkpoint(vanilla_rnn(5, nonlinearity, num_layers, bidirectional)).save(tmp_path / "model.pt")

    report = export_onnx(tmp_path / "model.pt", tmp_path / "model.onnx", graph=form)  # parity is part of it

    graph = onnx.load(tmp_path / "model.onnx").graph
    assert [node.op_type for node in graph.node].count(operator) == num_layers
    assert report.parity.max_absolute < 1e-6
    assert all(value.name.split(".")[0] in {"rnn", "batch", "images", "pixels"} for value in graph.value_info)


@pytest.mark.parametrize(
    ("rows", "nonlinearity", "num_layers", "bidirectional"),
    [
        (1, "tanh", 1, False),
        (1, "tanh", 4, False),
        (2, "relu", 2, True),
        (3, "relu", 4, False),
        (33, "tanh", 2, False),
        (33, "relu", 2, True),
        (64, "tanh", 1, True),
    ],
)
def test_wavefront_computes_the_same(
    tmp_path: Path, rows: int, nonlinearity: Nonlinearity, num_layers: int, bidirectional: bool
) -> None:
    random_checkpoint(vanilla_rnn(rows, nonlinearity, num_layers, bidirectional)).save(tmp_path / "model.pt")

    report = export_onnx(tmp_path / "model.pt", tmp_path / "model.onnx", graph="wavefront")  # parity is part of it

    assert (report.graph, report.target) == ("wavefront of Gemm", "cpu")
    assert report.parity.max_absolute < 2e-6


@pytest.mark.parametrize("rows", [1, 8, 9, 16, 27])
def test_unrolled_computes_the_same_however_its_rows_are_grouped(tmp_path: Path, rows: int) -> None:
    random_checkpoint(vanilla_rnn(rows, "tanh", 2, bidirectional=True)).save(tmp_path / "model.pt")

    report = export_onnx(tmp_path / "model.pt", tmp_path / "model.onnx", graph="unrolled")

    assert report.graph == "unrolled Gemm"
    assert report.parity.max_absolute < 2e-6


def build(spec: ModelSpec, graph: Graph) -> onnx.ModelProto:
    weights = {name: tensor.numpy() for name, tensor in random_checkpoint(spec).weights.items()}
    return build_onnx_model(spec, weights, graph)


def test_wavefront_has_two_nodes_per_row_for_all_layers() -> None:
    article = ModelSpec(ImageSpec(28, 28, 1), tuple("0123456789"))

    counts = {graph: len(build(article, graph).graph.node) for graph in GRAPHS}

    assert counts == {"unrolled": 154, "wavefront": 67, "scan": 11, "operator": 12}


@given(
    graph=st.sampled_from(["unrolled", "wavefront"]),
    rows=st.integers(1, 200),
    num_layers=st.integers(1, 3),
    bidirectional=st.booleans(),
)
def test_graphs_hold_nothing_that_cuda_copies_from_the_host(
    graph: Graph, rows: int, num_layers: int, bidirectional: bool
) -> None:
    image, names = ImageSpec(rows, 2, 1), ("cat", "dog")
    model = build(ModelSpec(image, names, hidden_size=3, num_layers=num_layers, bidirectional=bidirectional), graph)

    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {
        value.name: [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in inferred.value_info
    }
    for node in model.graph.node:
        assert node.op_type not in {"Shape", "Loop", "Scan", "If"}
        if node.op_type == "Split":  # into equal parts, since their sizes aren't given
            assert (len(node.input), len(node.output) <= 32) == (1, True), node.name
        if node.op_type == "Concat":
            assert len(node.input) <= 32, node.name
            axis = node.attribute[0].i
            assert len({str(shapes[name][axis]) for name in node.input}) == 1, node.name


@pytest.mark.parametrize("form", GRAPHS)
def test_no_form_computes_with_shapes(form: Graph) -> None:
    # onnxruntime computes shapes on the CPU, and refuses such a model where all nodes must run on CUDA
    types = {node.op_type for node in build(ModelSpec(ImageSpec(9, 4, 1), ("cat", "dog")), form).graph.node}

    assert not types & {"Shape", "Size", "ConstantOfShape", "NonZero", "Range"}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("mean", [0.0, 0.5])
def test_the_first_state_of_a_scan_is_zero_whatever_the_image(
    tmp_path: Path, precision: Precision, mean: float
) -> None:
    spec = ModelSpec(ImageSpec(3, 4, 1), ("cat", "dog"), hidden_size=6, mean=(mean,), std=(0.1,))
    random_checkpoint(spec).save(tmp_path / "model.pt")
    export_onnx(tmp_path / "model.pt", tmp_path / "model.onnx", graph="scan", precision=precision)
    model = onnx.load(tmp_path / "model.onnx")
    model.graph.output.append(onnx.ValueInfoProto(name="rnn.zero"))

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (zero,) = session.run(["rnn.zero"], {"images": np.random.default_rng(0).integers(0, 256, (5, 3, 4, 1), np.uint8)})

    assert zero.shape == (5, 6)
    assert not zero.any()


@pytest.mark.parametrize(
    ("cell", "rows", "form"),
    [("rnn", 28, "wavefront of Gemm"), ("rnn", 129, "wavefront of Gemm"), ("gru", 9, "GRU operator")],
)
def test_the_target_chooses_the_form_and_is_kept(tmp_path: Path, cell: Cell, rows: int, form: str) -> None:
    random_checkpoint(ModelSpec(ImageSpec(rows, 4, 1), ("cat", "dog"), cell, hidden_size=6)).save(tmp_path / "model.pt")

    report = export_onnx(tmp_path / "model.pt", tmp_path / "model.onnx", target="cuda")

    assert (report.graph, report.target) == (form, "cuda")
    metadata = Classifier(tmp_path / "model.onnx", provider="cpu").metadata
    assert (metadata.export["graph"], metadata.export["target"]) == (form, "cuda")


@pytest.mark.parametrize(
    ("cell", "options", "problem"),
    [
        ("lstm", {"precision": "int8"}, "no kernel for quantized LSTMs"),
        ("rnn", {"graph": "scan"}, "loops are slow on CUDA"),
        ("rnn", {"graph": "operator"}, "the operator RNN with tanh only"),
        ("rnn", {"target": "tpu"}, "`target` must be one of cpu, cuda, not 'tpu'"),
    ],
)
def test_what_cuda_cannot_run_is_refused(tmp_path: Path, cell: Cell, options: dict[str, str], problem: str) -> None:
    spec = ModelSpec(ImageSpec(5, 4, 1), ("cat", "dog"), cell, "relu" if cell == "rnn" else "tanh", hidden_size=6)
    random_checkpoint(spec).save(tmp_path / "model.pt")

    with pytest.raises(SettingsError, match=problem):
        export_onnx(tmp_path / "model.pt", tmp_path / "model.onnx", **{"target": "cuda", **options})  # type: ignore[arg-type]

    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.parametrize(("rows", "form"), [(128, "unrolled Gemm"), (129, "Scan of Gemm")])
def test_tall_images_get_a_graph_that_does_not_grow_with_them(tmp_path: Path, rows: int, form: str) -> None:
    random_checkpoint(ModelSpec(ImageSpec(rows, 4, 1), ("cat", "dog"), hidden_size=6)).save(tmp_path / "model.pt")

    report = export_onnx(tmp_path / "model.pt", tmp_path / "model.onnx")

    assert report.graph == form
    assert (report.nodes < 20) == (form == "Scan of Gemm")


@pytest.mark.parametrize("form", GRAPHS)
def test_float16_net_takes_and_gives_the_same_types(tmp_path: Path, form: Graph) -> None:
    spec = ModelSpec(ImageSpec(5, 4, 1), ("cat", "dog"), hidden_size=6)
    random_checkpoint(spec).save(tmp_path / "model.pt")

    report = export_onnx(tmp_path / "model.pt", tmp_path / "model.onnx", graph=form, precision="fp16")

    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    halves = [tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16]
    assert "linear.weight" in halves
    assert all(output.type.tensor_type.elem_type == onnx.TensorProto.FLOAT for output in model.graph.output)
    assert (report.parity.atol, report.parity.rtol) == (TOLERANCES["fp16"].atol, TOLERANCES["fp16"].rtol)
    assert 1e-6 < report.parity.max_absolute < 5e-3  # rounded, and no more than that


def dark_from_bright(spec: ModelSpec) -> Checkpoint:
    """A model of random weights whose linear layer alone is made to tell dark samples from bright ones, by far."""
    checkpoint = random_checkpoint(spec)
    generator = torch.Generator().manual_seed(0)
    dark, bright = (
        torch.randint(least, least + 60, (8, *spec.image_spec.shape), dtype=torch.uint8, generator=generator)
        for least in (0, 196)
    )
    model = checkpoint.build_model()
    model.linear = torch.nn.Identity()  # type: ignore[assignment]  # what goes into it comes out
    features = [model(images).mean(dim=0).detach() for images in (dark, bright)]
    direction = (features[1] - features[0]) / (features[1] - features[0]).square().sum()
    middle = direction @ (features[0] + features[1]) / 2
    # the logits of the two means are -3 and 3
    weights = dict(checkpoint.weights) | {
        "linear.weight": 6 * torch.stack([-direction, direction]),
        "linear.bias": 6 * torch.stack([middle, -middle]),
    }
    return replace(checkpoint, weights=weights, samples=torch.cat([dark, bright]))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.slow
def test_int8_lstm_is_smaller_and_gives_the_same_labels(tmp_path: Path, bidirectional: bool) -> None:
    spec = ModelSpec(ImageSpec(8, 8, 1), ("dark", "bright"), "lstm", hidden_size=64, bidirectional=bidirectional)
    dark_from_bright(spec).save(tmp_path / "model.pt")
    whole = export_onnx(tmp_path / "model.pt", tmp_path / "whole.onnx")

    report = export_onnx(tmp_path / "model.pt", tmp_path / "model.onnx", precision="int8")

    assert report.file_size < 0.5 * whole.file_size
    assert report.parity.equal_labels == 1
    classifier = Classifier(tmp_path / "model.onnx", provider="cpu")
    labels = classifier.predict_logits(Checkpoint.load(tmp_path / "model.pt").samples.numpy()).argmax(axis=1)
    assert labels.tolist() == [0] * 8 + [1] * 8
    assert self_check(classifier).within_tolerance
    types = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert types.count("DynamicQuantizeLSTM") == 2


@pytest.mark.parametrize("cell", ["rnn", "gru"])
def test_int8_of_another_cell_is_refused(tmp_path: Path, cell: Cell) -> None:
    random_checkpoint(ModelSpec(ImageSpec(5, 4, 1), ("cat", "dog"), cell, hidden_size=6)).save(tmp_path / "model.pt")

    with pytest.raises(SettingsError, match="int8 is for the cell lstm"):
        export_onnx(tmp_path / "model.pt", tmp_path / "model.onnx", precision="int8")


def test_weight_beyond_float16_is_refused(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(ModelSpec(ImageSpec(5, 4, 1), ("cat", "dog"), hidden_size=6))
    checkpoint.weights["linear.bias"][0] = 70_000
    checkpoint.save(tmp_path / "model.pt")

    with pytest.raises(SettingsError, match=r"linear.bias has a value beyond float16's largest, 65504"):
        export_onnx(tmp_path / "model.pt", tmp_path / "model.onnx", precision="fp16")

    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_unnormalized_model_only_divides_its_pixels(tmp_path: Path) -> None:
    spec = ModelSpec(ImageSpec(5, 4, 1), ("cat", "dog"), hidden_size=6)
    random_checkpoint(spec).save(tmp_path / "model.pt")

    export_onnx(tmp_path / "model.pt", tmp_path / "model.onnx")

    types = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert types.count("Div") == 1
    assert "Sub" not in types


EVERY_KIND: list[tuple[Cell, Graph, Precision]] = [
    *(("rnn", graph, precision) for graph in GRAPHS for precision in ("fp32", "fp16")),
    *(("gru", "operator", precision) for precision in ("fp32", "fp16")),
    *(("lstm", "operator", precision) for precision in PRECISIONS),
]


@pytest.mark.parametrize(("cell", "graph", "precision"), EVERY_KIND)
def test_a_temperature_divides_the_logits_of_the_probabilities_only(
    tmp_path: Path, cell: Cell, graph: Graph, precision: Precision
) -> None:
    spec = ModelSpec(ImageSpec(5, 4, 1), ("dark", "bright"), cell, hidden_size=8)
    plain = dark_from_bright(spec)
    plain.save(tmp_path / "plain.pt")
    replace(plain, temperature=2.5).save(tmp_path / "model.pt")
    for name in ("plain", "model"):
        export_onnx(tmp_path / f"{name}.pt", tmp_path / f"{name}.onnx", graph=graph, precision=precision)
    before, classifier = (Classifier(tmp_path / f"{name}.onnx", provider="cpu") for name in ("plain", "model"))
    images = plain.samples.numpy()

    logits, probabilities = classifier.predict_logits(images), classifier.predict_proba(images)

    assert np.array_equal(logits, before.predict_logits(images))
    np.testing.assert_allclose(probabilities, softmax(logits.astype(np.float64) / 2.5, axis=1), atol=1e-6)
    assert np.abs(probabilities - before.predict_proba(images)).max() > 0.05
    assert (classifier.metadata.temperature, before.metadata.temperature) == (2.5, None)
    assert self_check(classifier).within_tolerance
    names = [[node.name for node in onnx.load(tmp_path / name).graph.node] for name in ("plain.onnx", "model.onnx")]
    assert names[1] == [*names[0][:-1], "probabilities.scaled_logits", "probabilities"]


def test_plain_onnxruntime_runs_the_file_without_this_project(exported: onnx.ModelProto) -> None:
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])

    logits, probabilities = session.run(None, {"images": np.full((3, 5, 4, 3), 9, np.uint8)})

    assert logits.shape == (3, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
