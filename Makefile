# Two commands on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: quickstart quickstart-flow test test-on-ray test-without-ray test-slow test-cluster lint setup help

help:
	@echo "make quickstart   set up, then finetune the embedded model (5 to 10 minutes on 2 cores)"
	@echo "make quickstart-flow  the same with the embedded flow model"
	@echo "make test         set up, then lint, types, import contracts and tests (6 to 10 minutes on 2 cores)"
	@echo "make test-slow    more runs that are killed and go on, and short trainings"
	@echo "make test-cluster several hosts on this machine: ray up, jobs, a lost host (root, sshd; minutes)"
	@echo "make lint         ruff, mypy and the import contracts only"

setup: $(READY)

# torch is installed by itself and first: its exact version decides which build (CPU or CUDA) pip takes.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,models,ocr]"
	touch $(READY)

quickstart: $(READY)
	$(BIN)/python train.py configs/quickstart.yaml

quickstart-flow: $(READY)
	$(BIN)/python train.py configs/quickstart_flow.yaml

LINT = $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/lint-imports

lint: $(READY)
	$(LINT)

# Tests that start Ray run one after the other: two clusters at once crowd each other out of two cores. Half of
# the time they wait for processes to start; all that needs no Ray runs meanwhile and is shown when it is through.
test: $(READY)
	$(MAKE) --no-print-directory -j 2 test-on-ray test-without-ray

test-on-ray: $(READY)
	$(BIN)/python -m pytest -m "not slow" tests/faults tests/integration

test-without-ray: $(READY)
	( $(BIN)/python -m pytest -n 2 -m "not slow and not cluster" --ignore=tests/faults --ignore=tests/integration; \
	  units=$$?; $(LINT); exit $$((units | $$?)) ) > $(VENV)/test.log 2>&1; all=$$?; cat $(VENV)/test.log; exit $$all

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# Skips with a reason where network namespaces are not permitted or programs are missing.
test-cluster: $(READY)
	tests/cluster/run.sh $(BIN)/python -m cluster -rs tests/cluster
