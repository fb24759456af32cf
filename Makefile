# Everything a person or CI runs, each by one word; `make help` lists them.
#
# Two builds exist: the release one for use, demo and bench, and the debug one, which clippy's metadata aside
# is compiled once and shared by units, suites and the binary that whole-system tests start. Its overflow
# checks and assertions are worth having there. Cargo is always asked for the whole workspace, because asking
# for one crate would resolve other features and compile the dependencies again.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.NOTPARALLEL:
.DEFAULT_GOAL := build

export CARGO_TARGET_DIR ?= $(CURDIR)/target
RELEASE := $(CARGO_TARGET_DIR)/release/pgdeputy
DEBUG := $(CARGO_TARGET_DIR)/debug/pgdeputy

# The fault that `make demo` shows; `pgdeputy demo --help` lists them.
FAULT ?= member
# More arguments for demo and bench, such as ARGS="--json".
ARGS ?=
# Megabytes of WAL that the source retains, one row of bench-rejoin for each; the disk needs twice the greatest and 3 GB. The
# second list is measured over a link of 1 Gbit/s (root).
REJOIN_MB ?= 2048
REJOIN_LINK_MB ?= 2048

# Integration tests without etcd, PostgreSQL or HAProxy: they belong to the units. The simulator's takes a minute, and runs in
# `make test`, once.
FAST_TESTS := $(addprefix --test ,tidy golden decider end_to_end memory_faults usage)

# A real cluster is three PostgreSQL, etcd and proxies: a third one at a time would measure the machine.
CLUSTERS_AT_ONCE := 2

.PHONY: build
build: tools ## build target/release/pgdeputy (the default)
	cargo build --release --workspace --bins

.PHONY: deps
deps: ## install what building and running needs; skips what is there, starts nothing
	deploy/install-deps.sh

.PHONY: demo
demo: deps build ## lose the primary of a real cluster under load and watch it recover (FAULT=, ARGS=)
	$(RELEASE) demo --fault $(FAULT) $(ARGS)

.PHONY: check
check: tools fmt clippy units ## formatting, lints as errors, units: the one to run all day

.PHONY: fmt
fmt:
	cargo fmt --all --check

# The second looks at what is compiled for `make drill-mutants` alone, which would else break unseen.
.PHONY: clippy
clippy:
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --workspace --lib --bins --features pgdeputy/mistakes -- -D warnings

.PHONY: units
units:
	cargo test --workspace --lib --bins $(FAST_TESTS)

.PHONY: test
test: deps tools debug ## suites against real etcd and PostgreSQL, whole clusters, and the drills (units: make check)
	PGDEPUTY_BIN=$(DEBUG) cargo test --workspace --test '*' -- --test-threads=$(CLUSTERS_AT_ONCE)
	$(DEBUG) drills $(DRILLS)

# Where a run of drills leaves its report, and all logs if something was wrong.
DRILLS = --report $(CARGO_TARGET_DIR)/drills.html --evidence $(CARGO_TARGET_DIR)/drills-evidence

.PHONY: drills
drills: deps debug ## break a cluster in networks of its own in every class of fault, and judge it (root, ARGS=)
	$(DEBUG) drills $(DRILLS) $(ARGS)

# How many faults a long run strikes.
FAULTS ?= 300
.PHONY: drills-long
drills-long: deps build ## the same with every fault that is known, in an order made from SEED= (FAULTS=, root)
	$(RELEASE) drills --seed $(SEED) --faults $(FAULTS) $(DRILLS) $(ARGS)

# A build that can make mistakes, in a directory of its own: no other build may contain them.
MISTAKEN = $(CARGO_TARGET_DIR)/mistakes
.PHONY: drill-mutants
drill-mutants: deps debug ## show that drills on real processes find deliberate mistakes (MUTANT=, root)
	! grep -q MISTAKE_OF_PGDEPUTY $(DEBUG)
	CARGO_TARGET_DIR=$(MISTAKEN) CARGO_PROFILE_DEV_DEBUG=false cargo build -p pgdeputy --features mistakes
	grep -q MISTAKE_OF_PGDEPUTY $(MISTAKEN)/debug/pgdeputy
	tests/drill-mutants.sh $(MISTAKEN)/debug/pgdeputy $(CARGO_TARGET_DIR)/drill-mutants $(MUTANT)

.PHONY: test-long
test-long: deps tools debug test-install ## what takes long: ignored tests, install-deps in fresh Debian systems
	PGDEPUTY_BIN=$(DEBUG) cargo test --workspace --all-targets -- --ignored --test-threads=1

.PHONY: test-install
test-install: ## prove install-deps in throw-away Debian systems (root, debootstrap)
	deploy/test-install.sh

# The simulator: one seed, or HOURS of simulated time from it on; a PROFILE, else all in turn; TRACE=1 tells every step;
# FILE= a stored run.
SEED ?= 1
SIM := $(CARGO_TARGET_DIR)/release/sim
MODEL := $(CARGO_TARGET_DIR)/release/model

.PHONY: checkers
checkers: tools
	cargo build --release --workspace --bin sim --bin model

.PHONY: sim
sim: checkers ## run the deciders on a modelled cluster (SEED=, HOURS= or SEEDS=, PROFILE=, TRACE=1, MUTANT=, FILE=)
	$(SIM) --seed $(SEED) $(if $(HOURS),--hours $(HOURS)) $(if $(SEEDS),--seeds $(SEEDS)) \
	  $(if $(PROFILE),--profile $(PROFILE)) $(if $(TRACE),--trace) $(if $(MUTANT),--mutant $(MUTANT)) \
	  $(if $(CELLS),--cells) $(if $(FILE),--file $(FILE)) $(if $(JOBS),--jobs $(JOBS))

# Goes on where it was cut; a line of the file for each batch of seeds.
SIM_RESULTS ?= $(CARGO_TARGET_DIR)/sim-long.txt
.PHONY: sim-long
sim-long: checkers ## search HOURS= simulated hours (50000), resumable; fails if a cell was met fewer than 100 times
	$(SIM) --long $(SIM_RESULTS) --hours $(or $(HOURS),50000) $(if $(JOBS),--jobs $(JOBS))

.PHONY: mutants
mutants: checkers ## show that simulator and model checker find deliberate mistakes (SEED=, SEEDS=, MUTANT=)
	$(SIM) --mutants --seed $(SEED) --seeds $(or $(SEEDS),1000) $(if $(MUTANT),--mutant $(MUTANT)) \
	  $(if $(JOBS),--jobs $(JOBS))

.PHONY: model
model: checkers ## exhaust the model of the deciders as every commit does, or find one mistake in it (MUTANT=)
	$(MODEL) $(if $(MUTANT),--mutant $(MUTANT))

# How long at most; what is not exhausted by then says so.
MINUTES ?= 60
.PHONY: model-long
model-long: checkers ## the same for two failovers and two commits, with late reports (MINUTES=)
	$(MODEL) --long --minutes $(MINUTES)

.PHONY: bench
bench: deps build ## measure how long writes are away after each fault (ARGS=)
	$(RELEASE) bench $(ARGS)

.PHONY: bench-switchover
bench-switchover: deps build ## change the primary 20 times under pgbench through PgBouncer; no transaction may fail (ARGS=)
	$(RELEASE) bench-switchover $(ARGS)

.PHONY: bench-two-members
bench-two-members: deps build ## lose the primary of two members under pgbench and time how long writes are away (ARGS="--retained-mb 2048")
	$(RELEASE) bench-two-members $(ARGS)

.PHONY: bench-rejoin
bench-rejoin: deps tools ## measure a rejoin by rewind against stock pg_rewind: bytes and time (REJOIN_MB="2048 8192")
	PGDEPUTY_REJOIN_MB="$(REJOIN_MB)" PGDEPUTY_REJOIN_LINK_MB="$(REJOIN_LINK_MB)" cargo test -p pgdeputy-keeper --test pgfiles -- \
		--ignored --nocapture --exact bench_rejoin::ours_against_stock

# `installed` is the machine's own PostgreSQL; the others are fetched into target/postgres. Some eight minutes each.
VERSIONS ?= installed 16 17 18
.PHONY: test-versions
test-versions: deps tools debug ## rejoin against PostgreSQL 15 to 18: suites, matrix, TLS, failovers (VERSIONS=, INTERRUPTIONS=, SEED=)
	PGDEPUTY_BIN=$(DEBUG) PGDEPUTY_INTERRUPTIONS=$(or $(INTERRUPTIONS),100) $(if $(SEED),PGDEPUTY_SEED=$(SEED)) \
		tests/versions.sh $(CARGO_TARGET_DIR)/postgres $(VERSIONS)

.PHONY: debug
debug: tools
	cargo build --workspace --bins

.PHONY: deny
deny: ## licences, advisories and duplicate crates, where cargo-deny is installed
	@if command -v cargo-deny >/dev/null; then cargo deny check; \
	else echo "cargo-deny is not installed (cargo install cargo-deny): not checked"; fi

# Says what is missing before cargo says it after minutes.
.PHONY: tools
tools:
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust 1.90 or newer, see https://rustup.rs"; exit 1; }
	@command -v protoc >/dev/null || { echo "protoc is missing: run make deps first"; exit 1; }

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
