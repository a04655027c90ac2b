# Matriarch's build. `make` alone lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Go's usual place, and that of tools for root, for shells and CI that do not have them in PATH.
export PATH := $(PATH):/usr/local/go/bin:/usr/sbin:/sbin

TAGS    := hashicorpmetrics
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
GOTEST  := go test -buildvcs=false -tags $(TAGS)
LINT    := .cache/golangci-lint
# Packages tested at the same time: those with real PostgreSQL load the machine themselves, and count seconds.
PARALLEL ?= 1
# Seeds of the simulation in `make test` and `make sim`.
SEEDS    ?= 200
# What `make bench` plays (all without SCENARIOS), how often, what it compares with, and where results go.
RUNS        ?= 5
SCENARIOS   ?=
PEER        ?=
COORDINATOR ?=
OUT         ?= bench-out
# How long `make chaos` makes faults, and the seed that draws them; or the incident that it plays instead.
MINUTES     ?= 2
SEED        ?= 1
SCENARIO    ?=
# How long `make fuzz` gives each target.
FUZZTIME    ?= 20s
# Where packages and releases go; VERIFY=0 leaves out the second build of a release.
DIST   ?= dist
VERIFY ?= 1
NFPM   := .cache/nfpm
LEAKS  := .cache/gitleaks
TREE   := .cache/trees/bookworm

# The form of `make rollout`, and which of its steps (all without STEPS).
FORM        ?= full
STEPS       ?=

.PHONY: fuzz vuln secrets help deps build fmt lint vet test race sim check demo bench chaos rollout gobench packages packages-test release clean generate

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

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

# Everything is compiled before the first test runs: beside a compiler no test of seconds is fair.
test: deps ## run every test: unit, simulation, real PostgreSQL
	@$(GOTEST) -c -o /dev/null ./...
	@MATRIARCH_SIM_SEEDS=$(SEEDS) $(GOTEST) -count=1 -p $(PARALLEL) -timeout 60m ./...

race: ## run the fast tests under the race detector
	@command -v gcc >/dev/null || { echo "the race detector needs a C compiler: run 'make deps'" >&2; exit 1; }
	@CGO_ENABLED=1 $(GOTEST) -race -c -o /dev/null ./...
	@CGO_ENABLED=1 $(GOTEST) -race -short -p $(PARALLEL) -timeout 40m ./...

sim: ## simulate the whole cluster with seeded faults: make sim SEEDS=n
	@MATRIARCH_SIM_SEEDS=$(SEEDS) $(GOTEST) -count=1 -timeout 0 -run TestSeeds ./test/sim

check: vet lint secrets race ## what a change must pass besides the tests

demo: deps build ## seven nodes on this machine: start, kill, count what survived
	@bin/matriarch demo

bench: deps build ## measure what clients notice: make bench RUNS=n SCENARIOS=a,b PEER=patroni OUT=dir
	@[ -z "$(PEER)" ] || test/bench/peer.sh
	@go build -buildvcs=false -tags $(TAGS) -o bin/bench ./test/bench
	@bin/bench -runs $(RUNS) -scenarios '$(SCENARIOS)' -peer '$(PEER)' -coordinator '$(COORDINATOR)' -out $(OUT)

chaos: deps build ## break five nodes at random, in network namespaces, as root: make chaos MINUTES=n SEED=s | SCENARIO=list|name|all
	@go build -buildvcs=false -tags $(TAGS) -o bin/chaos ./test/chaos
	@bin/chaos -minutes $(MINUTES) -seed $(SEED) -scenario '$(SCENARIO)' -out chaos-out

# Everything that reads what a stranger, another node or a foreign file wrote: folder and target.
FUZZ := transport:FuzzMuxGarbage transport:FuzzRPCBody transport:FuzzJoin transport:FuzzParseToken consensus:FuzzGossipMeta consensus:FuzzCalls fsm:FuzzApply \
	internal/config:FuzzParse internal/api:FuzzRESTBodies internal/proxy:FuzzReadHeader internal/proxy:FuzzReadPacket internal/proxy:FuzzReadAnswer \
	pgmanager/pgconf:FuzzParseControlData pgmanager/pgconf:FuzzParseHistory pgmanager/pgconf:FuzzParseFormats pgmanager/pgconf:FuzzParseFile \
	pgmanager/pgconf:FuzzParseConninfo pgmanager/pgconf:FuzzParseSyncNames

# Go reports an error, without an input, when the time is over while it shortens an input that is merely interesting.
fuzz: ## fuzz every parser of what others write: make fuzz FUZZTIME=20s (each)
	@mkdir -p .cache; log=.cache/fuzz.log; for t in $(FUZZ); do echo "$$t for $(FUZZTIME)"; \
	if $(GOTEST) -run '^$$' -fuzz "^$${t#*:}$$" -fuzztime $(FUZZTIME) -parallel 2 ./$${t%%:*} >$$log 2>&1; then tail -1 $$log; \
	elif grep -q '^ *context deadline exceeded$$' $$log && ! grep -q 'Failing input\|panic:' $$log; then echo "nothing found"; else cat $$log; exit 1; fi; done

# Without network it says what is not known, and is content: what it finds depends on the day, not on the change.
vuln: ## look the dependencies up in Go's vulnerability database
	@left="not checked: whether Go itself or one of the $$(go list -m all | wc -l) modules that go.mod leads to has a known vulnerability"; \
	out=$$(cd tools && CGO_ENABLED=0 GOBIN=$(CURDIR)/.cache go install -buildvcs=false golang.org/x/vuln/cmd/govulncheck 2>&1) || { echo "$$left: govulncheck cannot be built here: $$out"; exit 0; }; \
	rc=0; out=$$(timeout 300 .cache/govulncheck -tags $(TAGS) ./... 2>&1) || rc=$$?; echo "$$out"; \
	if [ $$rc = 124 ]; then echo "$$left: no answer within five minutes"; exit 0; fi; \
	if echo "$$out" | grep -q 'vuln.go.dev.*\(dial\|lookup\|timeout\|refused\|403\|502\)\|no such host\|fetching vulnerabilities'; then echo "$$left: the database at vuln.go.dev cannot be reached from here"; exit 0; fi; exit $$rc

secrets: $(LEAKS) ## look for keys, tokens and passwords in everything that was ever committed
	@git rev-parse --git-dir >/dev/null 2>&1 || { echo "not checked: this is no git checkout"; exit 0; }; $(LEAKS) git --no-banner --no-color --log-level warn --redact --verbose . && echo "no secret in $$(git rev-list --count HEAD) commits"

rollout: deps ## install, upgrade and break formations on systemd hosts by Ansible, as root: make rollout FORM=reduced|full
	@deploy/deps-rollout.sh
	@go build -buildvcs=false -tags $(TAGS) -o bin/rollout ./test/rollout
	@bin/rollout -out rollout-out $(if $(filter reduced,$(FORM)),-reduced) $(if $(STEPS),-only '$(STEPS)')

gobench: ## run the benchmarks of single packages
	@$(GOTEST) -run '^$$' -bench . -benchmem ./...

packages: $(NFPM) ## build .deb and .rpm for amd64 and arm64 into DIST
	@deploy/packages/build.sh "$(VERSION)" $(DIST)

packages-test: packages $(TREE) ## install and remove the packages in a Debian tree, as root
	@MATRIARCH_PACKAGES=$(abspath $(DIST)) MATRIARCH_TREE=$(abspath $(TREE)) $(GOTEST) -count=1 -v -timeout 5m ./deploy/packages

release: ## build what is published into DIST/release: binaries, checksums, bills of materials
	@VERIFY=$(VERIFY) deploy/release/release.sh "$(VERSION)" $(DIST)/release

generate: ## rewrite the files made from the code
	@go generate ./...

clean: ## remove what was built
	@rm -rf bin dist .cache
	@if [ -f test/citus-standin/Makefile ]; then $(MAKE) -s -C test/citus-standin clean >/dev/null 2>&1 || true; fi

# Pinned in tools/go.mod and built from source, so that nothing but the Go module proxy is needed (about a minute, once).
$(LINT): tools/go.mod tools/go.sum
	@echo "building golangci-lint (once)"
	@cd tools && CGO_ENABLED=0 go build -buildvcs=false -ldflags '-s -w' -o ../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	@touch $@

$(NFPM): tools/nfpm/go.mod tools/nfpm/go.sum
	@echo "building nfpm (once)"
	@cd tools/nfpm && CGO_ENABLED=0 go build -buildvcs=false -ldflags '-s -w' -o ../../$@ github.com/goreleaser/nfpm/v2/cmd/nfpm
	@touch $@

$(LEAKS): tools/gitleaks/go.mod tools/gitleaks/go.sum
	@echo "building gitleaks (once)"
	@cd tools/gitleaks && CGO_ENABLED=0 go build -buildvcs=false -ldflags '-s -w' -o ../../$@ github.com/zricethezav/gitleaks/v8
	@touch $@

$(TREE):
	@echo "making a Debian tree (once)"
	@deploy/packages/tree.sh $@
