# Checks, tests and the demo; the top-level Makefile includes this file and
# defines the targets build and plugin.

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.9.0

# Under the race detector there are more packages, and more tests of each, at a
# time than processors: many mostly wait. Then, without it, what measures time,
# what crashes one goroutine again and again, and hosts that are processes of
# their own. Tests on real Docker Engines run last, one package at a time; before
# them the simulations, which need all processors, and which the detector would
# make twenty times slower. The benchmark is a module of its own. Nothing is
# vetted twice: `make check` does that.
LAB_PACKAGES := ./test/arch ./test/sim ./test/scale ./test/dockerlab ./test/e2e
LAB_TIMEOUT  := 60m
ALONE        := ^(TestLeaseLatency|TestJoiningStaysFlat|TestCrashAtEachWrite.*|TestFastPath.*|TestPasswordNoVXLAN|TestLab.*|Test.*Allocates?Nothing)$$

# sudo has a PATH of its own, which seldom has Go; users' often lacks sbin.
AS_ROOT := $(if $(SUDO),$(SUDO) env "PATH=$$PATH:/usr/local/sbin:/usr/sbin:/sbin")

# Nothing here is written in C. Without cgo and without paths, as the plugin is
# built, what is compiled once serves checks, plugin and labs; the race detector
# needs cgo.
export CGO_ENABLED = 0
export GOFLAGS := $(strip $(shell $(GO) env GOFLAGS 2>/dev/null) -trimpath)

##@ Check and test

.PHONY: check vulncheck test walkthrough fuzz sim scale bench bench-names demo demo-down lab-sweep

check: vulncheck ## Run gofmt, vet, staticcheck, tidy, known vulnerabilities, architecture
	@unformatted=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go')); \
	test -z "$$unformatted" || { echo "gofmt: $$unformatted"; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	$(GO) mod tidy -diff
	cd test/bench && $(GO) vet ./... && $(GO) run $(STATICCHECK) ./... && $(GO) mod tidy -diff
	$(GO) test -count=1 ./test/arch

# govulncheck's database is not reachable from everywhere: then there is no need
# to compile it. Behind a proxy only govulncheck itself can tell.
vulncheck: ## Look for known vulnerabilities, where their database can be reached
	@if [ -z "$$HTTPS_PROXY$$https_proxy" ] && ! timeout 5 bash -c ': </dev/tcp/vuln.go.dev/443' 2>/dev/null; then \
		echo 'govulncheck: left out, its database cannot be reached from here'; exit; \
	fi; \
	out=$$($(GO) run $(GOVULNCHECK) ./... 2>&1) && echo 'govulncheck: nothing found' || \
	case "$$out" in \
	*'fetching vulnerabilities'*) echo 'govulncheck: left out, its database cannot be reached from here' ;; \
	*) echo "$$out"; exit 1 ;; \
	esac

test: plugin ## Run all tests; those that need root skip without it, unless WEAVE_REQUIRE_ROOT=1
	$(GO) run ./test/report CGO_ENABLED=1 -race -vet=off -count=1 -p 3 -parallel 6 -skip '$(ALONE)' $$($(GO) list ./... | grep -vxF "$$($(GO) list $(LAB_PACKAGES))") \
		-- -vet=off -count=1 -p 1 -parallel 10 -run '$(ALONE)' ./plugin/daemon ./ipam ./mesh ./mesh/tap ./mesh/transport ./mesh/udp \
		-- -vet=off -count=1 -timeout $(LAB_TIMEOUT) -p 1 $(LAB_PACKAGES) \
		-- -C=test/bench -vet=off -count=1 -short ./...

# A test of test/e2e, which also holds that script and document agree.
walkthrough: plugin ## Write docs/walkthrough.md, by typing its commands on two Docker Engines
	@$(AS_ROOT) $(GO) test -vet=off -count=1 -run '^TestWalkthrough$$' ./test/e2e -walkthrough.write

# make fuzz FUZZTIME=30s FUZZ=mesh/wire fuzzes the targets of one package, for less;
# with FUZZTIME=0 it only chooses anew which of the inputs found are kept.
FUZZTIME ?= 10m
FUZZ     ?=

fuzz: ## Fuzz every parser, 10 minutes each, two at a time, and keep what is new: FUZZTIME=, FUZZ=
	$(GO) run ./test/fuzz -time '$(FUZZTIME)' '$(FUZZ)'

# make sim N=1000000 SEED=1 runs that many schedules from that seed on.
N    ?= 10000
SEED ?= 1

sim: ## Simulate N clusters (10000, a part of `make test`), with progress and rate
	$(GO) test ./test/sim -count=1 -timeout 0 -v -run '^TestSimulation$$' -sim.n=$(N) -sim.seed=$(SEED) -sim.progress=10s

# make scale PEERS=10,100 simulates smaller clusters: a thousand peers take 12 GB of
# memory and an hour of one processor. Results of other sizes are kept in build.
PEERS ?= 10,50,100,1000

scale: ## Simulate the control plane of up to 1000 hosts, an hour; writes docs/scale.md
	@mkdir -p build
	$(GO) test ./test/scale -count=1 -timeout 0 -v -run '^TestScale$$' -scale.peers=$(PEERS) \
		-scale.keep=$(CURDIR)/build/scale.json -scale.doc=$(CURDIR)/docs/scale.md

# BENCH='-rounds=1 -systems=weave,nebula' measures less, or otherwise; BENCH=-help
# tells how. nebula may be missing: then prepare has said why.
BENCH ?=

bench: plugin ## Measure Weave and others side by side, 15 minutes; BENCH=-help for less
	@$(SUDO) test/packages.sh demo
	cd test/bench && $(GO) build -o ../../build/bench/bench .
	@build/bench/bench prepare || echo 'going on without it' >&2
	@$(AS_ROOT) build/bench/bench $(BENCH)

bench-names: ## Measure the name server beside another, a minute; writes docs/names.md
	cd test/bench && $(GO) test -vet=off -count=1 -v -run '^TestNames$$' ./names -names.doc=$(CURDIR)/docs/names.md

# LAB is the name of one demo among several.
LAB ?=

demo: build ## Bring up two Docker hosts on this machine, one network; shows that it works
	@$(SUDO) test/packages.sh demo
	@$(AS_ROOT) $(GO) run ./test/demo up $(LAB)

demo-down: ## Remove what demo made
	@$(AS_ROOT) $(GO) run ./test/demo down $(LAB)

lab-sweep: ## Remove labs that killed test runs left behind
	@$(AS_ROOT) $(GO) run ./test/demo sweep
