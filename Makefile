# Everything a developer runs. The continuous integration calls the same targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
# Root's PATH on Debian lacks Go's folder, a user's lacks the one of runc and ip.
export PATH := $(PATH):/usr/local/go/bin:/usr/sbin:/sbin

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
PREFIX  ?= /usr/local
# containerd lies beside swarm, not in PATH, so that it never hides a distribution's containerd.
LIBDIR  := $(PREFIX)/lib/swarm
UNITDIR := $(PREFIX)/lib/systemd/system

GO_STATIC := CGO_ENABLED=0 go build -trimpath
TOOL      := $(GO_STATIC) -modfile tools/go.mod -ldflags '-s -w'
HELPERS   := bin/containerd bin/containerd-shim-runc-v2
PROTOS    := $(wildcard rpc/*.proto raftstore/*.proto)
# Packages with tests that need root or a real containerd; stories have a target of their own.
ROOT_PACKAGES = $(shell grep -rl --include='*_test.go' SWARM_ROOT_TESTS . | xargs -r -n1 dirname | sort -u)

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' Makefile

deps: ## install what Debian lacks to build, test and run; elsewhere name it
	@command -v go >/dev/null || { echo "go is missing: install $$(awk '/^go /{print "Go " $$2}' go.mod) from https://go.dev/dl"; exit 1; }
	@missing=""; \
	for need in runc:runc ip:iproute2 gcc:gcc protoc:protobuf-compiler; do \
	  command -v "$${need%%:*}" >/dev/null || missing="$$missing $${need#*:}"; done; \
	[ -e /usr/include/stdlib.h ] || missing="$$missing libc6-dev"; \
	[ -z "$$missing" ] && exit 0; \
	command -v apt-get >/dev/null || { echo "this machine lacks (names of Debian packages):$$missing"; exit 1; }; \
	[ "$$(id -u)" = 0 ] || { echo "as root, run: apt-get install -y$$missing"; exit 1; }; \
	echo "installing$$missing"; \
	apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null

build: bin/swarm $(HELPERS) bin/docker bin/hello.tar ## bin/swarm, its containerd and shim; the docker CLI and the image that tests use

.PHONY: bin/swarm bin/hello.tar
bin/swarm:
	@$(GO_STATIC) -ldflags '-s -w -X swarm/cli.version=$(VERSION)' -o $@ .
bin/containerd: tools/go.mod tools/go.sum
	@$(TOOL) -o $@ github.com/containerd/containerd/v2/cmd/containerd && touch $@
bin/containerd-shim-runc-v2: tools/go.mod tools/go.sum
	@$(TOOL) -o $@ github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2 && touch $@
bin/docker: tools/go.mod tools/go.sum
	@$(TOOL) -gcflags='github.com/docker/cli/cmd/docker=-lang=go1.26' -o $@ github.com/docker/cli/cmd/docker && touch $@
bin/hello.tar:
	@$(GO_STATIC) -ldflags '-s -w' -o bin/hello ./scenarios/hello
	@go run ./scenarios/hello/pack -program bin/hello -out $@

bin/tools/%: tools/go.mod tools/go.sum
	@package=$$(awk '$$1 ~ /\/$*$$/ {print $$1}' tools/go.mod | head -1); $(TOOL) -o $@ "$$package" && touch $@

generate: deps bin/tools/protoc-gen-go bin/tools/protoc-gen-go-grpc ## regenerate Go code from *.proto
	@$(call protoc,.)

protoc = PATH=$(CURDIR)/bin/tools:$$PATH protoc --go_out=$(1) --go_opt=module=swarm --go-grpc_out=$(1) --go-grpc_opt=module=swarm $(PROTOS)

check: deps bin/tools/staticcheck bin/tools/protoc-gen-go bin/tools/protoc-gen-go-grpc ## format, vet, staticcheck, generated files, architecture
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "run gofmt -w on:"; echo "$$unformatted"; exit 1; }
	@go vet ./...
	@bin/tools/staticcheck ./...
	@rm -rf bin/.generated && mkdir -p bin/.generated && $(call protoc,bin/.generated)
	@cd bin/.generated; find . -name '*.go' | while read -r file; do \
	  diff -I '^// .*protoc.* v' "$$file" "../../$$file" || { echo "$$file is out of date: make generate"; exit 1; }; done
	@go test -count=1 .

unit: deps ## pure tests with the race detector, no root, under a minute
	@go test -race -timeout 5m ./...

root-tests: deps build ## tests of single packages that need root, containerd and runc
	@[ "$$(id -u)" = 0 ] || { echo "root-tests need root"; exit 1; }
	@packages="$(ROOT_PACKAGES)"; [ -z "$$packages" ] || SWARM_ROOT_TESTS=1 go test -count=1 -timeout 10m -p 1 $$packages

scenarios: deps build ## stories: the real binary on nodes in network namespaces; STORY=name runs one
	@[ "$$(id -u)" = 0 ] || { echo "scenarios need root"; exit 1; }
	@SWARM_STORIES=1 go test -count=1 -v -timeout 20m $(if $(STORY),-run 'TestStories/$(STORY)') ./scenarios

# One process per core; GOMAXPROCS=1 because a bubble's goroutines take turns best on one, GOGC because memory is there.
SIM_MINUTES ?= 2
SIM_CORES   := $(shell nproc)
SIM_PLAY     = GOGC=400 GOMAXPROCS=1

sim: deps ## random stories of simulated clusters of all sizes, for SIM_MINUTES=2 on all cores; SEED=n plays one (SIZE=small: as in make test; SIM_SHRINK=50 shortens it), STORY=file a story
	@go test -c -o bin/sim.test ./scenarios/sim
	@if [ -n "$(STORY)" ]; then cd scenarios/sim && SIM_STORY=$(abspath $(STORY)) $(SIM_PLAY) ../../bin/sim.test -test.v -test.run '^TestStory$$'; \
	elif [ -n "$(SEED)" ]; then SIM_SEED=$(SEED) SIM_SIZE=$(or $(SIZE),both) $(SIM_PLAY) bin/sim.test -test.v -test.run '^TestSeeds$$'; \
	else $(call sim-seeds,bin/sim.test,$$(date +%s),SIM_MINUTES=$(SIM_MINUTES) SIM_SIZE=$(or $(SIZE),both)); fi

# sim-seeds PROGRAM,FIRST SEED,SETTINGS plays seeds on all cores.
sim-seeds = first=$(2); workers=""; failed=0; for core in $$(seq 0 $$(($(SIM_CORES)-1))); do \
	  SIM_SEED=$$((first+core)) SIM_STEP=$(SIM_CORES) $(3) $(SIM_PLAY) $(1) -test.timeout 0 -test.run '^TestSeeds$$' & workers="$$workers $$!"; done; \
	for worker in $$workers; do wait $$worker || failed=1; done; exit $$failed

# Together about three minutes on two cores.
sim-test: deps ## a hundred seeds of small simulated clusters, and ten with the race detector
	@go test -c -o bin/sim.test ./scenarios/sim
	@go test -race -c -o bin/sim-race.test ./scenarios/sim
	@( $(call sim-seeds,bin/sim.test,1,SIM_SEEDS=$$((100/$(SIM_CORES))) SIM_SIZE=small) )
	@( $(call sim-seeds,bin/sim-race.test,1,SIM_SEEDS=$$((10/$(SIM_CORES))) SIM_SIZE=small SIM_SEED_SECONDS=240) )

test: deps build check unit sim-test root-tests scenarios ## all of the above, what continuous integration runs; 20 minutes on two cores

bench: deps build ## the figures in one table, each with its target and a verdict; ONLY=part,… measures some
	@[ "$$(id -u)" = 0 ] || { echo "bench needs root"; exit 1; }
	@go test -c -o bin/bare.test ./agent/containerd
	@go run ./scenarios/bench $(if $(ONLY),-only $(ONLY))

demo: deps build ## a three-node cluster in network namespaces does the main job, and stays up
	@[ "$$(id -u)" = 0 ] || { echo "demo needs root"; exit 1; }
	@go run ./scenarios/demo

demo-down: ## remove the demo's cluster and everything of it
	@go run ./scenarios/demo -down

install: deps bin/swarm $(HELPERS) ## install under PREFIX (DESTDIR honoured): program, helpers, systemd unit, group swarm
	@install -d $(DESTDIR)$(LIBDIR) $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(UNITDIR)
	@install -m 0755 bin/swarm $(HELPERS) $(DESTDIR)$(LIBDIR)/
	@ln -sfn $(LIBDIR)/swarm $(DESTDIR)$(PREFIX)/bin/swarm
	@sed 's|@LIBDIR@|$(LIBDIR)|' tools/swarm.service >bin/swarm.service
	@install -m 0644 bin/swarm.service $(DESTDIR)$(UNITDIR)/swarm.service
	@if [ -z "$(DESTDIR)" ]; then \
	  getent group swarm >/dev/null || groupadd --system swarm; \
	  if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi; fi
	@echo "installed $(DESTDIR)$(LIBDIR)/swarm; next: systemctl enable --now swarm, then: swarm init"

clean: demo-down ## remove what was built
	@rm -rf bin

.PHONY: help deps build generate check unit sim sim-test root-tests scenarios test bench demo demo-down install clean
