PYTHON ?= python3
VENV ?= .venv
# cpu or cuda: which onnxruntime to install
RUNTIME ?= cpu
# such as `-m "not slow"` or `-k parity`
PYTEST_OPTIONS ?=

BIN := $(VENV)/bin

.PHONY: help demo test bench lint clean
help:
	@echo "make demo    train on handwritten digits, export, and classify image files"
	@echo "make test    run all tests"
	@echo "make bench   compare speed and memory with the alternatives (half an hour on an idle machine)"
	@echo "make lint    check style, types and imports"
	@echo "make clean   remove the virtual environment and what demo made"

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

# PYTHONWARNINGS: setuptools warns at every editable install of folders that might hide a package; none does
$(VENV)/.train-$(RUNTIME): pyproject.toml | $(VENV)/bin/pip
	@echo "Installing PyTorch, onnxruntime and what they need into $(VENV): some minutes ..."
	PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --editable '.[train,$(RUNTIME)]'
	touch $@

$(VENV)/.dev-$(RUNTIME): pyproject.toml | $(VENV)/bin/pip
	@echo "Installing PyTorch, onnxruntime, test tools and what they need into $(VENV): some minutes ..."
	PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --editable '.[train,$(RUNTIME),dev]'
	touch $@ $(VENV)/.train-$(RUNTIME)

demo: $(VENV)/.train-$(RUNTIME)
	rm -rf demo && mkdir demo
	$(BIN)/rnn-train --dataset digits --epochs 30 --learning-rate 0.005 --output demo/model.pt
	$(BIN)/rnn-export demo/model.pt demo/model.onnx
	$(BIN)/python -m rnn_train.write_images --dataset digits demo/images
	$(BIN)/rnn-infer --model demo/model.onnx --recursive --labels-from-folders --output demo/predictions.csv demo/images
	$(BIN)/rnn-infer --model demo/model.onnx --self-check
	@echo "See demo/: examples.png, confusion_matrix.png, curves.png, metrics.csv, model.pt, model.onnx, images/, predictions.csv"

test: $(VENV)/.dev-$(RUNTIME)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup $(PYTEST_OPTIONS)

bench: $(VENV)/.dev-$(RUNTIME)
	PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --editable '.[train,$(RUNTIME),bench]'
	$(BIN)/python -m benchmarks

lint: $(VENV)/.dev-$(RUNTIME)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) demo build dist *.egg-info train/*.egg-info
