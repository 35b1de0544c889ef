#!/bin/bash
# Installs the Debian packages that the labs need and this machine lacks, after
# saying which. Where there is no apt-get it only says what is missing.
#
#   test/packages.sh        for the tests
#   test/packages.sh demo   for the demo, which needs less
set -euo pipefail
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin # users' often lacks them

missing=()
need() { # package, command that succeeds if it is there
	local package=$1
	shift
	if ! "$@" >/dev/null 2>&1 && [[ " ${missing[*]} " != *" $package "* ]]; then
		missing+=("$package")
	fi
}

have() { command -v "$1"; }
static_busybox() { have busybox && ! ldd "$(command -v busybox)"; }

need docker.io have dockerd
need docker.io have docker
need iproute2 have ip
need iptables have iptables
need util-linux have nsenter
need busybox-static static_busybox
need ca-certificates test -s /etc/ssl/certs/ca-certificates.crt
if [ "${1:-}" != demo ]; then
	need docker-compose have docker-compose
	need nftables have nft
fi

if [ ${#missing[@]} -eq 0 ]; then
	exit 0
fi
echo "Missing on this machine, from Debian: ${missing[*]}"
if ! have apt-get >/dev/null; then
	echo "There is no apt-get here: please install them." >&2
	exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
	echo "Please run as root: apt-get install ${missing[*]}" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
install() {
	echo "apt-get install $*"
	apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}
apt-get update -qq
install "${missing[@]}"
# Debian 13 has the command apart from the engine.
if ! have docker >/dev/null; then
	install docker-cli
fi
