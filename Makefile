# Two commands, each sets up what it needs:    make bench    make test
# Further: make test-all (the long rest as well), make lint, make docs (the site, in build/site), make hub (build/hub), make clean.
#
# A Python that already has torch (2.11 or newer), triton, pytest and matplotlib is used as it is. Otherwise .venv is
# made on top of it: a new enough torch is kept, with its triton; where there is none, $(TORCH) is installed first,
# so that nothing installed after it can bring another.
#   make PYTHON=python3.12 test            another Python
#   make TORCH='torch==2.15.0' bench       another torch
PYTHON ?= python3
TORCH  ?= torch==2.13.0 triton==3.7.1

# has(modules): does $(PYTHON) have them, and torch new enough?
has     = $(PYTHON) -c 'import sys, importlib.util as u, importlib.metadata as m; sys.exit(not (all(map(u.find_spec, sys.argv[1:])) and tuple(map(int, m.version("torch").split(".")[:2])) >= (2, 11)))' $(1)
PY     := $(shell $(call has,torch triton pytest matplotlib) && echo $(PYTHON) || echo .venv/bin/python)
READY  := $(if $(filter .venv/%,$(PY)),.venv/ready)
PIP     = .venv/bin/python -m pip install -q -c .venv/torch.txt

unexport PYTHONDONTWRITEBYTECODE # seven processes import the tests: what the first compiles serves the others

.PHONY: bench test test-all lint docs hub clean
bench: $(READY)
	$(PY) -m bench --quick
test: $(READY)
	$(PY) -m pytest -q
test-all: $(READY)
	$(PY) -m pytest -q --long
lint: .venv/dev
	.venv/bin/python -m ruff check .
	.venv/bin/python -m mypy
docs: .venv/docs
	.venv/bin/python -m sphinx -q -W --keep-going -d build/doctrees docs build/site
hub:
	$(PYTHON) hub/build.py build/hub

# .venv/torch.txt: the torch and triton of .venv, as constraints for everything installed later
.venv/torch.txt:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("rnn_triton needs Python 3.10 or newer: make PYTHON=...")'
	@echo "setting up .venv"
	@rm -rf .venv && $(PYTHON) -m venv .venv
	@if $(call has,torch); then \
	  $(PYTHON) -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parents[1])' \
	    > "$$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer.pth"; \
	else echo "installing $(TORCH)"; .venv/bin/python -m pip install -q $(TORCH); fi
	@.venv/bin/python -c 'import importlib.metadata as m; [print(f"{n}=={m.version(n)}") for n in ("torch", "triton") if next(m.distributions(name=n), None)]' > $@.tmp
	@mv $@.tmp $@
.venv/ready: .venv/torch.txt pyproject.toml
	$(PIP) -e '.[bench,test]'
	touch $@
.venv/dev .venv/docs: .venv/%: .venv/ready
	$(PIP) -e '.[$*]'
	touch $@
clean:
	rm -rf .venv .ov* build bench/out *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
