#!/usr/bin/env bash
# Set a machine up: what the README says, and nothing else. Runs in the machine as root; again it does no harm.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive

# the host's configuration of apt, where PYDATAPATH_VM_APT_CONF names one
if [[ -e /tmp/99-from-the-host ]]; then
    install --mode=644 /tmp/99-from-the-host /etc/apt/apt.conf.d/
    rm -f /tmp/99-from-the-host
fi

# "on Debian 12, as root, with git and make installed"
if ! command -v git >/dev/null || ! command -v make >/dev/null; then
    apt-get -qq update
    apt-get -qq install --yes --no-install-recommends git make >/dev/null
fi
mkdir -p /home/vagrant/results # vagrant/fetch takes it to the host
cd /home/vagrant/pydatapath
make setup
tools/setup.sh bench
uname -sr
.venv/bin/pydatapath doctor || true # tells; the demo and the tests decide
