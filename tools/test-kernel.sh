#!/usr/bin/env bash
# Run the packet tests on Debian's own kernel (6.1 for Debian 12), in an emulator without KVM: some minutes.
#
#   tools/test-kernel.sh                 the packet tests that ask the kernel something; exits as pytest does
#   tools/test-kernel.sh COMMAND ...     any other command, run as root in this folder on that kernel
#
# The guest sees this machine's files (what it writes is lost), so .venv and python3-bpfcc are those of this machine.
# Call it through `make test-kernel`, which installs what it needs.
set -euo pipefail

limit=${PYDATAPATH_KERNEL_TIMEOUT:-2400} # seconds for the guest, boot and tests
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cache=$here/.cache/kernel
cd -- "$here"

say() { printf 'test-kernel: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

# The package that the meta package linux-image-amd64 depends on: linux-image-6.1.0-NN-amd64.
newest_image() {
    apt-cache depends --important linux-image-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1
}

# Put the kernel and its modules below $cache/IMAGE, once; prints IMAGE.
fetch_kernel() {
    local image
    image=$(newest_image)
    if [[ -z $image && $(id -u) == 0 ]]; then
        timeout 300 apt-get -qq update >&2 || true
        image=$(newest_image)
    fi
    if [[ -n $image && ! -e $cache/$image/.complete ]]; then
        say "downloading $image (70 MB, kept in .cache)"
        rm -rf -- "${cache:?}/$image" "$cache/download"
        mkdir -p -- "$cache/download"
        (cd -- "$cache/download" && timeout 600 apt-get -qq -o APT::Sandbox::User=root download "$image") >&2 ||
            { timeout 300 apt-get -qq update >&2 && image=$(newest_image) &&
                (cd -- "$cache/download" && timeout 600 apt-get -qq -o APT::Sandbox::User=root download "$image") >&2; } || image=
        if [[ -n $image ]]; then
            dpkg -x "$cache/download/$image"_*.deb "$cache/$image"
            PATH=$PATH:/sbin:/usr/sbin depmod -b "$cache/$image" "${image#linux-image-}"
            touch -- "$cache/$image/.complete"
        fi
        rm -rf -- "$cache/download"
    fi
    if [[ -z $image ]]; then # no network: what was fetched before serves
        image=$(find "$cache" -mindepth 2 -maxdepth 2 -name .complete -printf '%h\n' 2>/dev/null | sort -V | tail -n 1)
        image=${image##*/}
    fi
    [[ -n $image ]] || die "apt knows no linux-image-amd64 to download"
    printf '%s\n' "$image"
}

[[ $(id -u) == 0 ]] || die "needs root"
[[ $(uname -m) == x86_64 ]] || die "boots amd64 kernels only"
[[ -x .venv/bin/virtme-ng ]] || die "virtme-ng is missing: run tools/setup.sh kernel"

image=$(fetch_kernel)
run=$(mktemp -d -- "$cache/run.XXXXXX") # the one folder that the guest can write to
children=()
# shellcheck disable=SC2317 # called by the trap
finish() {
    for child in "${children[@]}"; do
        kill -- "$child" 2>/dev/null || true
    done
    rm -rf -- "$run"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

command=("$@")
if [[ $# == 0 ]]; then
    command=(.venv/bin/python -m pytest -p no:cacheprovider --junit-xml="$run/junit.xml" --durations=15
        -m "not same_everywhere" tests/packet)
fi

# The guest has a /var/cache of its own: programs that this machine has compiled need no minutes of compiling there
mkdir -- "$run/compiled"
cp -- /var/cache/pydatapath/*.json "$run/compiled/" 2>/dev/null || true

cat >"$run/guest.sh" <<GUEST
cd $(printf %q "$here")
export HOME=/root LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis
# a skip for a lack of the set-up is a failure; emulation is 30 times slower than the machine
export PYDATAPATH_NO_SKIP=host PYTEST_TIMEOUT=600 PYDATAPATH_EMULATED=1
{
    modprobe -a bridge veth cls_bpf sch_ingress vxlan
    ip link set lo up
    cp -r $(printf %q "$run/compiled") /var/cache/pydatapath
    mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf
    echo "Linux \$(uname -r), booted in \$(cut -d ' ' -f 1 /proc/uptime) s"
    $(printf '%q ' "${command[@]}")
} >$(printf %q "$run/output") 2>&1 </dev/null
echo \$? >$(printf %q "$run/status")
GUEST

: >"$run/output"
vm=(
    "$here/.venv/bin/virtme-ng" --run "$cache/$image/boot/vmlinuz-${image#linux-image-}" --disable-kvm
    --cpus "$(nproc)" --memory 2G --verbose --rwdir="$run" --exec "bash $(printf %q "$run/guest.sh")"
)
say "booting $image in an emulator"
# virtme-ng wants a terminal: `script` is one; it also finds its helpers by PATH.
PATH=$here/.venv/bin:$PATH:/sbin:/usr/sbin timeout --kill-after=10 "$limit" \
    script --quiet --return --command "$(printf '%q ' "${vm[@]}")" /dev/null >"$run/console" 2>&1 </dev/null &
children+=($!)
machine=$!
tail --silent --lines=+1 --follow --pid="$machine" --sleep-interval=0.3 -- "$run/output" &
children+=($!)
viewer=$!
end=0
wait "$machine" || end=$?
wait "$viewer" || true
children=()

grep -aE 'BUG:|Oops|WARNING: CPU|general protection' "$run/console" >&2 || true
if [[ ! -s $run/status ]]; then
    tail -n 30 -- "$run/console" >&2
    [[ $end != 124 && $end != 137 ]] || die "not done within $limit s: stopped"
    die "the guest ended (status $end) before the command did; above, the last lines of its console"
fi
if [[ -e $run/junit.xml ]]; then
    cp -- "$run/junit.xml" "$cache/junit.xml"
fi
exit "$(<"$run/status")"
