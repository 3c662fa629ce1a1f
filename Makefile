# Every target sets up what it needs, on a machine with nothing but Python 3.10+.
PYTHON ?= python3
VENV := .venv
RUN := OMP_NUM_THREADS=1 $(VENV)/bin/python
# SubprocVecEnv tests and training are fastest with one torch thread per process.
JOBS ?= 2
# PyPI's torch for Linux is a CUDA build of several GB; TORCH_INDEX=https://download.pytorch.org/whl/cpu takes PyTorch's for the CPU.
TORCH_INDEX ?=

.PHONY: setup train test test-simulators lint type format commit-checks

setup: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt torch $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e ".[dev,plots]"
	touch $@

train: setup  ## GI-PPO against PPO on De Jong's function, under five minutes
	$(RUN) examples/train.py

test: setup
	$(RUN) -m pytest -n $(JOBS)

test-simulators: setup  ## gradients through other people's JAX simulators, ten minutes; their packages are no part of an extra
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt brax mujoco-mjx
	$(RUN) -m pytest tests/test_jax_simulators.py tests/test_jax.py tests/test_pages.py

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

type: setup
	$(VENV)/bin/mypy -p sb3_gippo -p gippo_envs

format: setup
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

commit-checks: format type lint test
