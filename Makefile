# Everything runs from .venv, made here by the Python named below; nothing else is needed or changed.
PYTHON ?= python3.11
PY := .venv/bin/python
INSTALLED := .venv/.installed

.PHONY: setup demo test lint ui lock

setup: $(INSTALLED)

# Again only when the lock or the project's own metadata change. uv installs the lock in seconds, pip in minutes.
$(INSTALLED): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON) here; name a Python 3.11 or 3.12: make PYTHON=python3.12"; exit 2; }
	@test -x $(PY) || $(PYTHON) -m venv .venv || { rm -rf .venv; exit 2; }
	@$(PY) -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	.venv/bin/uv pip install --python $(PY) --quiet --compile-bytecode --require-hashes -r requirements.lock
	.venv/bin/uv pip install --python $(PY) --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(INSTALLED)
	$(PY) -m clar.sweep augmentations --preset demo

test: $(INSTALLED)
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# The runs of the default storage in the browser, on this machine only.
ui: $(INSTALLED)
	@test -f clar_runs/mlflow.db || { echo "error: no runs in clar_runs yet; make demo trains some"; exit 2; }
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true .venv/bin/mlflow ui --workers 1 --backend-store-uri sqlite:///$(CURDIR)/clar_runs/mlflow.db --host 127.0.0.1 --port 5000

# After a change of the dependencies: newest versions that fit, with hashes, without the index they came from.
lock: $(INSTALLED)
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --upgrade --all-extras --generate-hashes \
		--no-emit-index-url --no-header pyproject.toml --output-file requirements.lock
