# Weave. `make help` lists the targets.

SHELL := /bin/sh

GO      ?= go
# What needs root goes through sudo, so that compiling does not.
SUDO    ?= $(shell [ "$$(id -u)" = 0 ] || echo sudo)
DOCKER  ?= $(SUDO) docker
# The name of the managed plugin. Not "weave": that would hide the socket by
# which dockerd knows the plugin as `-d weave`.
PLUGIN  ?= weavenet
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

.PHONY: image
image: build ## Build the same root file system with the Dockerfile, as image weave
	tar -c Dockerfile -C '$(BUILD)' weave | $(DOCKER) build -t weave --build-arg BINARY=weave -

.PHONY: clean
clean: ## Remove build/
	rm -rf '$(BUILD)'

##@ Install

# An upgrade is a removal and a new start: the state is in /var/lib/weave, and
# containers keep their interfaces meanwhile. Settings live in the plugin, so
# they are carried over here. SET is looked at before anything is touched.
.PHONY: install
install: plugin ## Put the plugin into the local Docker Engine and the command on the PATH
	@set -euf; \
	set='$(SET_LITERAL)'; \
	$(CHECK_SET); \
	settings=$$(mktemp); \
	if $(DOCKER) plugin inspect $(PLUGIN) >/dev/null 2>&1; then \
		$(DOCKER) plugin inspect --format '$(SETTINGS)' $(PLUGIN) | sed -n '/^[^=]*=./p' >"$$settings"; \
		echo "Replacing plugin $(PLUGIN); its settings are kept."; \
		$(REMOVE_PLUGIN) || \
			{ echo "The old plugin could not be removed: it is still there, with its settings, which are also in $$settings. Start it: docker plugin enable $(PLUGIN)" >&2; exit 1; }; \
	fi; \
	$(DOCKER) plugin create $(PLUGIN) '$(BUILD)/plugin' >/dev/null || \
		{ echo "The plugin is not installed now. Its settings are in $$settings." >&2; exit 1; }; \
	while IFS= read -r setting; do \
		$(DOCKER) plugin set $(PLUGIN) "$$setting" || \
			{ echo "Not taken over: $${setting%%=*}. The old settings are in $$settings." >&2; exit 1; }; \
	done <"$$settings"; \
	rm -f "$$settings"; \
	for setting in $$set; do \
		$(DOCKER) plugin set $(PLUGIN) "$$setting" || \
			{ echo "The plugin is installed, but disabled: a setting in SET was not taken." >&2; exit 1; }; \
	done; \
	$(DOCKER) plugin enable $(PLUGIN) >/dev/null || \
		{ echo "The plugin is installed, but does not start. Its settings: docker plugin inspect $(PLUGIN)" >&2; exit 1; }; \
	$(SUDO) mkdir -p '$(PREFIX)/bin'; \
	$(SUDO) install -m 0755 '$(BUILD)/weave' '$(PREFIX)/bin/weave.new'; \
	$(SUDO) mv -f '$(PREFIX)/bin/weave.new' '$(PREFIX)/bin/weave'; \
	echo "Plugin $(PLUGIN) $(VERSION) is enabled. See: $(PREFIX)/bin/weave status"

# With its last network the plugin takes links and packet filters off the host,
# so the networks go first; nor could Docker remove them without it.
.PHONY: uninstall
uninstall: ## Remove plugin and command; the state in /var/lib/weave stays
	@set -euf; \
	if $(DOCKER) plugin inspect $(PLUGIN) >/dev/null 2>&1; then \
		networks=$$($(NETWORKS)); \
		if [ -n "$$networks" ] && [ -z '$(FORCE)' ]; then \
			echo "Nothing was removed: there are networks that need the plugin. Remove the containers on them, and then:" >&2; \
			echo "  docker network rm" $$networks >&2; \
			echo "FORCE=1 removes the plugin all the same, and leaves the networks, and links and packet filters until the host boots." >&2; \
			exit 1; \
		fi; \
		$(REMOVE_PLUGIN) || \
			{ echo "The plugin could not be removed: it is still there, with its settings. Start it: docker plugin enable $(PLUGIN)" >&2; exit 1; }; \
	fi; \
	$(SUDO) rm -f '$(PREFIX)/bin/weave'; \
	echo "Removed. Keys and addresses are still in /var/lib/weave; delete that folder to forget them."

# One setting to a line, as `docker plugin set` takes them. Source is a pointer:
# println would write where it points to.
SETTINGS := {{range .Settings.Env}}{{println .}}{{end}}{{range .Settings.Mounts}}{{if .Settable}}{{.Name}}.source={{.Source}}{{"\n"}}{{end}}{{end}}

# SET for within single quotes: neither make nor the shell expands what a
# password may hold.
SET_LITERAL = $(subst ','\'',$(value SET))

# Each word of SET must set what config.json names. The word itself is not shown:
# it may be half a password.
CHECK_SET = n=0; for setting in $$set; do \
		n=$$((n + 1)); name=$${setting%%=*}; \
		case "$$setting" in *=*) grep -qF "\"name\": \"$${name%.source}\"" config.json ;; *) false ;; esac || \
			{ echo "Nothing was changed: word $$n of SET is not NAME=VALUE with a setting of the plugin. Write several peers with commas, WEAVE_PEERS=host1,host2, and a password that has spaces into a file, WEAVE_PASSWORD_FILE." >&2; exit 1; }; \
	done

# The names of networks that have the plugin as their driver or for their addresses.
NETWORKS = $(DOCKER) network ls -q | xargs $(DOCKER) network inspect --format '{{.Name}} {{.Driver}} {{.IPAM.Driver}}' | \
	sed -nE 's/ (.* )?(weave|$(PLUGIN)(:latest)?)( .*)?$$//p'

# -f: networks that use the plugin do not keep it from being replaced.
REMOVE_PLUGIN = { $(DOCKER) plugin disable -f $(PLUGIN) >/dev/null 2>&1 || true; $(DOCKER) plugin rm -f $(PLUGIN) >/dev/null; }

include test/test.mk
