# make demo   sets up .venv and restores the example photographs into demo/
# make test   sets up .venv with everything the tests need, and runs them
# make lint   style, types, and who may import whom (pyproject.toml: tool.importlinter)
# make docs   builds the documentation site into build/site; warnings are errors
# make wheel-check   builds the wheel, installs it into an empty environment, restores a picture there, checks sizes
# make image-check   builds docker/Dockerfile with buildah and restores a picture in the image (root; minutes; Debian)
#
# PYTHON   the interpreter to make .venv with (3.10 or newer)
# TORCH    what pip installs as PyTorch for the tests. The default is a build for CPU where pip's sources offer one,
#          and on many Linux machines the large CUDA build. Others, such as the CPU build from PyTorch's own index:
#              make test TORCH="torch --index-url https://download.pytorch.org/whl/cpu"
#          Empty for none: the tests that need it are then skipped.
# PYTEST   more arguments for pytest, such as PYTEST="-k folder -x"
# WEIGHTS  a file of weights for the upscaling of the demo, instead of the shipped model

PYTHON ?= python3
TORCH ?= torch==2.13.0
PYTEST ?=
WEIGHTS ?=

# The Python side of TensorRT (1 MB each) without its library, each version in a folder of its own: tests check the names
# that are used of it.
BINDINGS := tensorrt-bindings==8.6.1 tensorrt-cu13-bindings==10.16.1.11 tensorrt-cu13-bindings==11.4.0.106

# The genuine runtime and plugin registry of TensorRT, without builder and parser (47 MB each), as CUDA:VERSION, and
# headers of 10.14 for the plugin: they load without a GPU. 8.6.0 is one wheel, for Python 3.10.
LEAN := cu12:10.16.1.11 cu13:11.4.0.106
HEADERS := kernel-lens==2.0.1

# The configuration's message of Triton Inference Server; its other dependencies are old, so it stays apart.
TRITONCLIENT := tritonclient==2.73.0

BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: demo test lint format docs wheel-check image-check clean

demo: .venv/.core
	$(BIN)/python examples/demo.py --output demo $(if $(WEIGHTS),--weights "$(WEIGHTS)")

# Two processes or more share the tests, a file each: each computes with one thread, or they would slow one another down.
test: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile $(PYTEST)

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/.dev
	$(BIN)/python docs/site/build.py

wheel-check: $(BIN)/python
	$(BIN)/python .ci/wheel_check.py

image-check: $(BIN)/python
	$(BIN)/python .ci/image_check.py

clean:
	rm -rf .venv demo

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed; name one: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv .venv || \
		{ rm -rf .venv; echo "the venv module is missing; on Debian and Ubuntu: apt install python3-venv"; exit 1; }

.venv/.core: pyproject.toml | $(BIN)/python
	@echo "installing restort into .venv ..."
	@$(PIP) install -e .
	@$(PIP) install -e '.[openvino]' || echo "OpenVINO cannot be installed here; ONNX Runtime does the work"
	@touch $@

.venv/.dev: pyproject.toml | $(BIN)/python
	@echo "installing restort and what its tests need into .venv ..."
	@$(if $(TORCH),$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) install $(TORCH) || $(PIP) install torch,true)
	@$(PIP) install -e '.[dev]'
	@$(PIP) install -e '.[formats]' || echo "HEIC, JPEG XL or raw cannot be read here; their tests are skipped"
	@$(PIP) install -e '.[cluster]' || echo "Ray cannot be installed here; its test is skipped"
	@for it in $(BINDINGS); do \
		$(PIP) install --no-deps --target ".venv/tensorrt-bindings/$${it##*==}" $$it 2>/dev/null || \
			echo "$$it is not for this Python or system; its test is skipped"; \
	done
	@for it in $(LEAN); do \
		name=tensorrt-lean-$${it%%:*} version=$${it##*:}; \
		$(PIP) install --no-deps --only-binary :all: --target ".venv/tensorrt-lean/$$version" \
			$$name-libs==$$version $$name-bindings==$$version 2>/dev/null || \
			echo "$$name $$version is not for this Python or system; its tests are skipped"; \
	done
	@$(PIP) install --no-deps --only-binary :all: --target .venv/tensorrt-lean/8.6.0 tensorrt-lean==8.6.0 2>/dev/null || \
		echo "tensorrt-lean 8.6.0 is not for this Python or system; its tests are skipped"
	@$(PIP) install --no-deps --target .venv/tritonclient $(TRITONCLIENT) 2>/dev/null || \
		echo "tritonclient cannot be installed; the tests that read a server's configuration are skipped"
	@$(PIP) install --no-deps --only-binary :all: --target .venv/tensorrt-headers $(HEADERS) 2>/dev/null || \
		echo "the headers of TensorRT cannot be installed; tests that compile its plugin are skipped"
	@touch $@
