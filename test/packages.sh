#!/bin/bash
# Installs the Debian packages that the labs need and this machine lacks, after
# saying which. Where there is no apt-get it only says what is missing.
set -euo pipefail

missing=()
need() { # package, command that succeeds if it is there
	local package=$1
	shift
	"$@" >/dev/null 2>&1 || missing+=("$package")
}

have() { command -v "$1"; }
static_busybox() { have busybox && ! ldd "$(command -v busybox)"; }

need docker.io have dockerd
need docker.io have docker
need docker-compose have docker-compose
need iproute2 have ip
need iptables have iptables
need util-linux have nsenter
need busybox-static static_busybox
need ca-certificates test -s /etc/ssl/certs/ca-certificates.crt

if [ ${#missing[@]} -eq 0 ]; then
	exit 0
fi
echo "missing on this machine, from Debian: ${missing[*]}"
if ! have apt-get >/dev/null; then
	echo "there is no apt-get here: please install them" >&2
	exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
	echo "please run as root: apt-get install ${missing[*]}" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
echo "apt-get install ${missing[*]}"
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}"
