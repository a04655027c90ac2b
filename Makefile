# Matriarch's build. `make` alone lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Go's usual place, for shells and CI that do not have it in PATH.
export PATH := $(PATH):/usr/local/go/bin

TAGS    := hashicorpmetrics
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
GOTEST  := go test -buildvcs=false -tags $(TAGS)
LINT    := .cache/golangci-lint
# Packages tested at the same time: those with real PostgreSQL load the machine themselves.
PARALLEL ?= 2
# Seeds of the simulation in `make test` and `make sim`.
SEEDS    ?= 200
# What `make bench` plays (all without SCENARIOS), how often, what it compares with, and where results go.
RUNS        ?= 5
SCENARIOS   ?=
PEER        ?=
COORDINATOR ?=
OUT         ?= bench-out
# How long `make chaos` makes faults, and the seed that draws them.
MINUTES     ?= 2
SEED        ?= 1
# The form of `make rollout`, and which of its steps (all without STEPS).
FORM        ?= full
STEPS       ?=

.PHONY: help deps build fmt lint vet test race sim check demo bench chaos rollout gobench clean generate

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deps: ## install what is missing (PostgreSQL, tools, the Citus stand-in); asks nothing
	@deploy/deps.sh

build: ## build bin/matriarch, one static stripped binary
	@CGO_ENABLED=0 go build -buildvcs=false -trimpath -tags $(TAGS) -ldflags '-s -w -X main.version=$(VERSION)' -o bin/matriarch ./cmd/matriarch
	@echo "built bin/matriarch $(VERSION)"

fmt: $(LINT) ## format the sources
	@$(LINT) fmt

lint: $(LINT) ## run the linters: format, import rules and more
	@$(LINT) run

vet: ## run go vet
	@go vet -tags $(TAGS) ./...

test: deps ## run every test: unit, simulation, real PostgreSQL
	@MATRIARCH_SIM_SEEDS=$(SEEDS) $(GOTEST) -count=1 -p $(PARALLEL) -timeout 20m ./...

race: ## run the fast tests under the race detector
	@command -v gcc >/dev/null || { echo "the race detector needs a C compiler: run 'make deps'" >&2; exit 1; }
	@CGO_ENABLED=1 $(GOTEST) -race -short -p $(PARALLEL) -timeout 15m ./...

sim: ## simulate the whole cluster with seeded faults: make sim SEEDS=n
	@MATRIARCH_SIM_SEEDS=$(SEEDS) $(GOTEST) -count=1 -timeout 0 -run TestSeeds ./test/sim

check: vet lint race ## what a change must pass besides the tests

demo: deps build ## seven nodes on this machine: start, kill, count what survived
	@bin/matriarch demo

bench: deps build ## measure what clients notice: make bench RUNS=n SCENARIOS=a,b PEER=patroni OUT=dir
	@[ -z "$(PEER)" ] || test/bench/peer.sh
	@go build -buildvcs=false -tags $(TAGS) -o bin/bench ./test/bench
	@bin/bench -runs $(RUNS) -scenarios '$(SCENARIOS)' -peer '$(PEER)' -coordinator '$(COORDINATOR)' -out $(OUT)

chaos: deps build ## break five nodes at random, in network namespaces, as root: make chaos MINUTES=n SEED=s
	@go build -buildvcs=false -tags $(TAGS) -o bin/chaos ./test/chaos
	@bin/chaos -minutes $(MINUTES) -seed $(SEED) -out chaos-out

rollout: deps ## install, upgrade and break formations on systemd hosts by Ansible, as root: make rollout FORM=reduced|full
	@deploy/deps-rollout.sh
	@go build -buildvcs=false -tags $(TAGS) -o bin/rollout ./test/rollout
	@bin/rollout -out rollout-out $(if $(filter reduced,$(FORM)),-reduced) $(if $(STEPS),-only '$(STEPS)')

gobench: ## run the benchmarks of single packages
	@$(GOTEST) -run '^$$' -bench . -benchmem ./...

generate: ## rewrite the files made from the code
	@go generate ./...

clean: ## remove what was built
	@rm -rf bin .cache
	@if [ -f test/citus-standin/Makefile ]; then $(MAKE) -s -C test/citus-standin clean >/dev/null 2>&1 || true; fi

# Pinned in tools/go.mod and built from source, so that nothing but the Go module proxy is needed (about a minute, once).
$(LINT): tools/go.mod tools/go.sum
	@echo "building golangci-lint (once)"
	@cd tools && CGO_ENABLED=0 go build -buildvcs=false -ldflags '-s -w' -o ../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	@touch $@
