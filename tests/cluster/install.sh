#!/usr/bin/env bash
# Installs what the emulated cluster needs on Debian and its kin, where it is missing. Usage: bash tests/cluster/install.sh
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"
missing=0
for program in ip tc nsenter unshare; do
    command -v "$program" >/dev/null || missing=1
done
if [ "$missing" = 0 ]; then
    exit 0
fi
if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
    echo "iproute2 or util-linux is missing, and cannot be installed without root and apt-get: tests will be skipped" >&2
    exit 0
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends iproute2 util-linux
