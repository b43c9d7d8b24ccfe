# Each target is one command. `make demo` and `make test` install what is missing first (deploy/setup).
CARGO ?= cargo
PREFIX ?= /usr/local
BENCH = target/ci/trunkline-bench

.PHONY: setup build demo test test-all fuzz lint bench install
setup: ; @deploy/setup
build: setup ; $(CARGO) build --profile ci --workspace
demo: build ; @$(BENCH) demo
test: ; @CARGO="$(CARGO)" bench/ring
test-all: test ; @CARGO="$(CARGO)" bench/long
# Each target for TIME seconds, on the nightly toolchain.
fuzz: ; @CARGO="$(CARGO)" TIME="$(TIME)" fuzz/run
lint: ; $(CARGO) fmt --all --check && $(CARGO) clippy --profile ci --workspace --all-targets -- -D warnings && if command -v cargo-deny >/dev/null; then $(CARGO) deny check --config .deny.toml; fi
# Rivals are optimised, and so must be what is measured beside them.
bench: setup ; $(CARGO) build --release --workspace && target/release/trunkline-bench throughput
install: ; $(CARGO) build --release --workspace && install -d $(DESTDIR)$(PREFIX)/bin && install -m 755 target/release/trunkline target/release/trunkline-agent target/release/trunkline-router target/release/trunkline-bench $(DESTDIR)$(PREFIX)/bin
