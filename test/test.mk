# Checks, tests and the demo; the top-level Makefile includes this file and
# defines the targets build and plugin.

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.9.0

# Tests on real Docker Engines run alone, after all others, and without the
# race detector: what they test is other processes. The simulation comes first
# of these: it needs all processors, and the detector makes it twenty times
# slower.
LAB_PACKAGES := ./test/sim ./test/dockerlab ./test/e2e
LAB_TIMEOUT  := 9m

# sudo has a PATH of its own, which seldom has Go; users' often lacks sbin.
AS_ROOT := $(if $(SUDO),$(SUDO) env "PATH=$$PATH:/usr/local/sbin:/usr/sbin:/sbin")

##@ Check and test

.PHONY: check vulncheck test sim demo demo-down lab-sweep

check: vulncheck ## Run gofmt, vet, staticcheck, tidy, known vulnerabilities, architecture
	@unformatted=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go')); \
	test -z "$$unformatted" || { echo "gofmt: $$unformatted"; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	$(GO) mod tidy -diff
	$(GO) test -count=1 ./test/arch

# govulncheck ends with status 3 where it found something, and with 1 where it
# could not look: its database is not reachable from everywhere.
vulncheck:
	@out=$$($(GO) run $(GOVULNCHECK) ./... 2>&1) && echo 'govulncheck: nothing found' || \
	case "$$out" in \
	*'exit status 3'*) echo "$$out"; exit 1 ;; \
	*) echo 'govulncheck: left out, its database cannot be reached from here' ;; \
	esac

test: plugin ## Run all tests; those that need root skip without it, unless WEAVE_REQUIRE_ROOT=1
	$(GO) run ./test/report -race $$($(GO) list ./... | grep -vxF "$$($(GO) list $(LAB_PACKAGES))") \
		-- -count=1 -timeout $(LAB_TIMEOUT) -p 1 $(LAB_PACKAGES)

# make sim N=1000000 SEED=1 runs that many schedules from that seed on.
N    ?= 10000
SEED ?= 1

sim: ## Simulate N clusters (10000, a part of `make test`), with progress and rate
	$(GO) test ./test/sim -count=1 -timeout 0 -v -run '^TestSimulation$$' -sim.n=$(N) -sim.seed=$(SEED) -sim.progress=10s

demo: plugin ## Bring up two Docker hosts on this machine, one network; shows that it works
	@$(SUDO) test/packages.sh
	@$(AS_ROOT) $(GO) run ./test/demo up

demo-down: ## Remove what demo made
	@$(AS_ROOT) $(GO) run ./test/demo down

lab-sweep: ## Remove labs that killed test runs left behind
	@$(AS_ROOT) $(GO) run ./test/demo sweep
