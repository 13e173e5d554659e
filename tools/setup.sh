#!/usr/bin/env bash
# Everything pydatapath needs on this machine: Debian's packages and the virtual environment .venv.
#
#   tools/setup.sh            what demo, test and lint need
#   tools/setup.sh kernel     also what `make test-kernel` needs (an emulator)
#   tools/setup.sh bench      also what `make bench` needs (load generators, a web server, iptables to compare with)
#   tools/setup.sh fresh      also what `make check-fresh` needs (a Debian bootstrapper)
#   tools/setup.sh list ...   only prints the names of the Debian packages, for the groups that follow
#
# Quick when all is there: it installs only what is missing, and builds .venv anew only when pyproject.toml changed.
set -euo pipefail

# The one list of Debian packages.
packages=(
    python3-venv     # a virtual environment of Debian's own Python, which python3-bpfcc is built for
    python3-bpfcc    # bcc: compiles the datapath's C when it is loaded (not on PyPI: `bcc` there is something else)
    libbpf1          # maps and pins
    linux-libc-dev   # the kernel's public headers, of any version: headers of the running kernel are not needed
)
test_packages=(
    iproute2         # ip, tc, ss: what a user would check our work with
    iputils-ping
    procps           # sysctl
    tcpdump          # what is really on the wire
    ethtool          # offloads on and off
    iperf3           # throughput and retransmits
    curl             # large bodies from a pod
    stun-client      # which NAT somebody else says that a pod is behind
    stun-server      # starts nothing: Debian's START_DAEMON is off
    nftables         # the demo proves that its ruleset is empty
    iptables         # with nftables: what kube-proxy does by them is what benchmarks compare with
    bpftool          # programs and maps, as seen by somebody else
    shellcheck       # make lint
)
kernel_packages=(qemu-system-x86 busybox-static kmod util-linux)
bench_packages=(ipvsadm nginx-light sockperf wrk)
fresh_packages=(mmdebstrap git)

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd -- "$here"
python=/usr/bin/python3 # never the first python3 of PATH: bcc belongs to the system's
venv=$here/.venv
bcc=/usr/lib/python3/dist-packages/bcc
extras=tests,lint

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

list=''
if [[ ${1-} == list ]]; then
    list=yes
    shift
fi
wanted=("${packages[@]}" "${test_packages[@]}")
for group in "$@"; do
    case $group in
        kernel)
            wanted+=("${kernel_packages[@]}")
            extras+=,kernel
            ;;
        bench) wanted+=("${bench_packages[@]}") ;;
        fresh) wanted+=("${fresh_packages[@]}") ;;
        *) die "no such group: $group (known: kernel, bench, fresh)" ;;
    esac
done
if [[ -n $list ]]; then
    printf '%s\n' "${wanted[@]}" | sort -u
    exit
fi

# One set-up at a time in one tree; the lock goes with this process.
exec 9<"$here/pyproject.toml"
flock --wait 900 9 || die "another set-up of this tree did not end within 15 minutes"

install_packages() {
    command -v dpkg-query >/dev/null || {
        say "not a Debian system: install the equivalents of ${wanted[*]} yourself"
        return
    }
    local missing
    missing=$(comm -23 \
        <(printf '%s\n' "${wanted[@]}" | sort -u) \
        <(dpkg-query --show --showformat '${Package} ${db:Status-Status}\n' | sed -n 's/ installed$//p' | sort -u))
    [[ -n $missing ]] || return 0
    missing=${missing//$'\n'/ }
    if [[ $(id -u) != 0 ]]; then
        say "these packages are missing: run  apt-get install $missing  as root"
        return
    fi
    say "installing $missing"
    export DEBIAN_FRONTEND=noninteractive
    local apt=(timeout --kill-after=10 900 apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0) log
    log=$(mktemp)
    "${apt[@]}" update >"$log" 2>&1 || {
        cat -- "$log" >&2
        say "apt-get update failed: going on with the package lists that are here"
    }
    # shellcheck disable=SC2086 # names of packages, one word each
    "${apt[@]}" install --yes --no-install-recommends $missing >"$log" 2>&1 9<&- || {
        cat -- "$log" >&2
        rm -f -- "$log"
        die "apt-get could not install $missing"
    }
    rm -f -- "$log"
    # The benchmark starts its own nginx; a web server that Debian started for us is not wanted.
    if [[ " $missing " == *" nginx-light "* && -d /run/systemd/system ]]; then
        systemctl --quiet disable --now nginx || say "nginx.service could not be stopped"
    fi
}

# What .venv was built from, and where: it holds absolute paths, so a copy of the tree needs its own.
fingerprint() {
    printf '%s %s\n' "$here" "$1"
    "$python" --version
    sha256sum pyproject.toml tools/setup.sh
}

build_venv() {
    local stamp=$venv/.pydatapath-setup want
    want=$(fingerprint "$extras")
    if [[ -e $stamp ]]; then
        local is
        is=$(<"$stamp")
        # more extras than asked for are fine: after `setup.sh kernel`, a plain one has nothing to do
        [[ $is != "$want" && $is != "$(fingerprint "$extras,kernel")" ]] || return 0
    fi
    # pip's first line tells whose folder it was made for
    if [[ -e $venv ]] && ! { grep -qsF "#!$venv/bin/python" "$venv/bin/pip" && "$venv/bin/python" -c ''; }; then
        say "removing a virtual environment that belongs to another folder or Python"
        rm -rf -- "$venv"
    fi
    [[ -x $python ]] || die "$python is missing: install python3"
    if [[ ! -e $venv/bin/pip ]]; then
        say "making .venv"
        "$python" -m venv "$venv" || die "cannot make .venv: install python3-venv"
    fi
    say "installing pydatapath and its tools into .venv"
    timeout --kill-after=10 1200 "$venv/bin/python" -m pip install -qq --editable ".[$extras]" ||
        die "pip could not install pydatapath[$extras]"
    # One link makes the system's bcc importable and nothing else of the system's (its pyroute2 and click are too old).
    if [[ -d $bcc ]]; then
        ln -sfn -- "$bcc" "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/bcc"
    else
        say "bcc is not here: only what needs no kernel will work (install python3-bpfcc, then run this again)"
        return # no stamp: the next run looks again
    fi
    printf '%s\n' "$want" >"$stamp"
}

install_packages
build_venv
