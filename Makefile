PYTHON ?= python3
VENV ?= .venv
# cpu or cuda: which onnxruntime to install
RUNTIME ?= cpu
# such as `-m "not slow"` or `-k parity`
PYTEST_OPTIONS ?=
# the versions to install; empty for the newest that pyproject.toml allows
CONSTRAINTS ?= constraints/pinned.txt

BIN := $(VENV)/bin
# PYTHONWARNINGS: setuptools warns at every editable install of folders that might hide a package; none does
INSTALL := PYTHONWARNINGS=ignore $(BIN)/pip install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

.PHONY: help demo test test-lowest house bench bench-quick lint docs pins clean
help:
	@echo "make demo         train on handwritten digits, export, and classify image files"
	@echo "make test         run all tests"
	@echo "make test-lowest  run the runtime's tests with the lowest versions that it allows, in .venv-lowest"
	@echo "make house        print how many modules three commands go through, and the size of the product"
	@echo "make bench        compare speed and memory with the alternatives (half an hour on an idle machine)"
	@echo "make bench-quick  compare speed with another commit (AGAINST=<commit>), in less than three minutes"
	@echo "make lint         check style, types and imports"
	@echo "make docs         build the documentation in site/"
	@echo "make pins         write constraints/pinned.txt anew, with the newest versions"
	@echo "make clean        remove the virtual environments and what demo made"

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/.train-$(RUNTIME): pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/pip
	@echo "Installing PyTorch, onnxruntime and what they need into $(VENV): some minutes ..."
	$(INSTALL) --editable '.[train,$(RUNTIME)]'
	touch $@

$(VENV)/.dev-$(RUNTIME): pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/pip
	@echo "Installing PyTorch, onnxruntime, test tools and what they need into $(VENV): some minutes ..."
	$(INSTALL) --editable '.[train,$(RUNTIME),docs,dev]'
	touch $@ $(VENV)/.train-$(RUNTIME)

demo: $(VENV)/.train-$(RUNTIME)
	rm -rf demo && mkdir demo
	$(BIN)/rnn-train --dataset digits --image-size 28 --fit glyph --augment rotation,scale --cell gru --epochs 30 \
	    --schedule one-cycle --learning-rate 0.003 --output demo/model.pt
	$(BIN)/rnn-export demo/model.pt demo/model.onnx
	$(BIN)/rnn-onnx write-images --dataset digits demo/images
	$(BIN)/rnn-infer --model demo/model.onnx --recursive --labels-from-folders --output demo/predictions.csv demo/images
	$(BIN)/rnn-onnx check demo/model.onnx
	@echo "See demo/: report.html, examples.png, metrics.csv, model.pt, model.onnx, images/, predictions.csv"
	@echo "Draw a digit: run $(BIN)/rnn-serve -m demo/model.onnx, and open http://localhost:8080"

test: $(VENV)/.dev-$(RUNTIME)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup $(PYTEST_OPTIONS)

# PIP_COMPILE=0 saves a minute: most of PyTorch's modules are never imported. The second command names each version that is
# there, and would put right one that isn't. Besides the runtime's tests run those of the graphs, all of which the runtime
# opens, and of command lines, whose mistakes click words.
test-lowest:
	PIP_COMPILE=0 $(MAKE) VENV=.venv-lowest RUNTIME=cpu CONSTRAINTS=constraints/lowest.txt .venv-lowest/.dev-cpu
	.venv-lowest/bin/pip install --no-deps --requirement constraints/lowest.txt
	.venv-lowest/bin/python -m pytest --numprocesses 2 $(PYTEST_OPTIONS) \
		tests/runtime tests/export/test_graph.py tests/pipeline/test_command_lines.py

house: $(VENV)/.dev-$(RUNTIME)
	$(BIN)/python -m tests.house

bench: $(VENV)/.dev-$(RUNTIME)
	$(INSTALL) --editable '.[train,$(RUNTIME),bench]'
	$(BIN)/python -m benchmarks

# such as make bench-quick AGAINST=v0.1.0
bench-quick: $(VENV)/.train-$(RUNTIME)
	@test -n "$(AGAINST)" || { echo "Say with which commit to compare: make bench-quick AGAINST=main" >&2; exit 2; }
	$(INSTALL) --editable '.[train,$(RUNTIME),bench]'
	$(BIN)/python -m benchmarks --against $(AGAINST)

lint: $(VENV)/.dev-$(RUNTIME)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# NO_MKDOCS_2_WARNING: Material advertises against MkDocs 2, which pyproject.toml excludes.
docs: $(VENV)/.dev-$(RUNTIME)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "See site/index.html"

pins: $(VENV)/bin/pip
	$(BIN)/pip install --quiet --dry-run --ignore-installed --report $(VENV)/pins.json '.[train,cpu,cuda,parquet,cloud,ray,serve,tensorboard,bench,docs,dev]'
	$(BIN)/python constraints/pin.py $(VENV)/pins.json > $(VENV)/pinned.txt
	mv $(VENV)/pinned.txt constraints/pinned.txt

clean:
	rm -rf $(VENV) .venv-lowest demo site build dist *.egg-info train/*.egg-info
