# The plugin's root file system: one static binary and the mount points that
# config.json names. `make plugin` lays out the same without Docker.
#
#   make build                    # makes build/weave; nothing is downloaded here
#   docker build -t weave .
#
# Without Go on the machine, let a container compile it first:
#
#   docker run --rm -v "$PWD":/src -w /src golang:1.26 make build
#
# The image can also run the daemon as an ordinary container, for trying things.
FROM scratch

# The binary to take; its path is relative to the build context.
ARG BINARY=build/weave

# WORKDIR is the one instruction that makes a folder in an empty image.
WORKDIR /host/run
WORKDIR /host/var/lib
WORKDIR /run/docker/plugins
WORKDIR /
COPY ${BINARY} /weave
ENTRYPOINT ["/weave", "daemon"]
