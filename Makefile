# Weave. `make help` lists the targets.

SHELL := /bin/sh

GO      ?= go
# What needs root goes through sudo, so that compiling does not.
SUDO    ?= $(shell [ "$$(id -u)" = 0 ] || echo sudo)
DOCKER  ?= $(SUDO) docker
PREFIX  ?= /usr/local
# What `make install` sets, as in SET='WEAVE_PEERS=host1,host2 WEAVE_MTU=1400'.
SET     ?=
# Not empty: `make uninstall` although there are networks.
FORCE   ?=
# Where binary and plugin are made; the tests look for them there as well.
BUILD   ?= $(or $(WEAVE_BUILD),build)
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

.DEFAULT_GOAL := help

##@ Help

.PHONY: help
help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##@ Build

.PHONY: build
build: ## Compile the static binary build/weave
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o '$(BUILD)/weave' ./plugin

.PHONY: plugin
plugin: build ## Lay out build/plugin for `docker plugin create`
	rm -rf '$(BUILD)/plugin'
	mkdir -p '$(BUILD)/plugin/rootfs/host/run' '$(BUILD)/plugin/rootfs/host/var/lib' '$(BUILD)/plugin/rootfs/run/docker/plugins'
	cp config.json '$(BUILD)/plugin/config.json'
	cp '$(BUILD)/weave' '$(BUILD)/plugin/rootfs/weave'

.PHONY: man
man: build ## Write the man pages into build/man
	rm -rf '$(BUILD)/man'
	'$(BUILD)/weave' man '$(BUILD)/man'

.PHONY: image
image: build ## Build the same root file system with the Dockerfile, as image weave
	tar -c Dockerfile -C '$(BUILD)' weave | $(DOCKER) build -t weave --build-arg BINARY=weave -

.PHONY: clean
clean: ## Remove build/
	rm -rf '$(BUILD)'

##@ Install

# The command is in place first, so that `weave launch` can be repeated if it
# fails. It keeps the settings from before.
.PHONY: install
install: build man ## Put command and man pages in place, and launch or upgrade the plugin
	@$(SUDO) mkdir -p '$(PREFIX)/bin' '$(PREFIX)/share/man/man1'
	@$(SUDO) install -m 0644 '$(BUILD)'/man/*.1 '$(PREFIX)/share/man/man1'
	@$(SUDO) install -m 0755 '$(BUILD)/weave' '$(PREFIX)/bin/weave.new'
	@$(SUDO) mv -f '$(PREFIX)/bin/weave.new' '$(PREFIX)/bin/weave'
	@$(SUDO) '$(PREFIX)/bin/weave' launch --set '$(SET_LITERAL)'

# With its last network the plugin takes links and packet filters off the host,
# so the networks go first; nor could Docker remove them without it.
.PHONY: uninstall
uninstall: build man ## Remove plugin and command; the state in /var/lib/weave stays
	@$(SUDO) '$(BUILD)/weave' stop --remove $(if $(FORCE),--force)
	@$(SUDO) rm -f '$(PREFIX)/bin/weave'
	@cd '$(BUILD)/man' && for page in *.1; do $(SUDO) rm -f '$(PREFIX)/share/man/man1'/"$$page"; done

# SET for within single quotes: neither make nor the shell expands what a
# password may hold.
SET_LITERAL = $(subst ','\'',$(value SET))

include test/test.mk
