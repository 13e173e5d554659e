#!/usr/bin/env bash
# The release check: a fresh clone in a minimal Debian 12, so that no package that happens to be here helps.
#
#   tools/minimal-root.sh                  make demo, then make test
#   tools/minimal-root.sh COMMAND ...      another command in the clone instead
#   tools/minimal-root.sh --worktree ...   this tree as it is, changes not committed included, in place of a clone
#   tools/minimal-root.sh --keep ...       leave the root for a look afterwards (its path is printed)
#
# The root has make, git and ca-certificates beyond Debian's minimum. It uses apt's sources, pip's configuration and the
# certificates of this machine. Mounts and processes live in namespaces of their own and end with them.
set -euo pipefail

suite=bookworm
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
limit=${PYDATAPATH_FRESH_TIMEOUT:-3600} # seconds for the commands in the root

say() { printf 'minimal-root: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

worktree='' keep=''
while [[ ${1-} == --* ]]; do
    case $1 in
        --worktree) worktree=yes ;;
        --keep) keep=yes ;;
        *) die "unknown option $1" ;;
    esac
    shift
done
[[ $(id -u) == 0 ]] || die "needs root"
for tool in mmdebstrap git unshare; do
    command -v "$tool" >/dev/null || die "$tool is missing: run tools/setup.sh fresh"
done

work=$(mktemp -d -- "${TMPDIR:-/var/tmp}/pydatapath-root.XXXXXX")
root=$work/root
# shellcheck disable=SC2317 # called by the trap
finish() {
    if [[ -n $keep ]]; then
        say "kept: $root"
    else
        rm -rf --one-file-system -- "$work"
    fi
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Debian's minimum, by this machine's own sources and way to the network
sources=()
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
    [[ ! -s $file ]] || sources+=("$file")
done
[[ ${#sources[@]} -gt 0 ]] || die "apt has no sources here"
apt-config dump Acquire | grep -Ev '^Acquire::IndexTargets| "";$' >"$work/apt.conf"
say "making a minimal $suite in $root"
timeout --kill-after=10 1200 mmdebstrap --quiet --variant=minbase --include=make,git,ca-certificates \
    --aptopt="$work/apt.conf" "$suite" "$root" "${sources[@]}" || die "mmdebstrap failed"

# copy PATH...: bring files to the same place in the root. A folder that the root lacks is bound later, read-only, from
# its first part that the root lacks: the files of an index lie beside it.
folders=()
copy() {
    local path
    for path in "$@"; do
        if [[ -f $path ]]; then
            mkdir -p -- "$root${path%/*}"
            cp -L -- "$path" "$root$path"
        elif [[ -d $path && ! -e $root$path ]]; then
            while [[ ! -e $root${path%/*} ]]; do
                path=${path%/*}
            done
            mkdir -- "$root$path"
            folders+=("$path")
        fi
    done
}
copy /etc/resolv.conf /etc/hosts

# What pip and TLS read: variables, files and the places that these name
environment=(HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 "TERM=${TERM:-dumb}")
while IFS= read -r name; do
    environment+=("$name=${!name}")
done < <(compgen -e | grep -E '^(PIP_.*|SSL_CERT_(FILE|DIR)|(REQUESTS|CURL)_CA_BUNDLE|[a-z]+_proxy|[A-Z]+_PROXY|PYDATAPATH_.*|PYTEST_ARGS)$')
pip_files=(/etc/pip.conf "$HOME/.config/pip/pip.conf" "$HOME/.pip/pip.conf" "${PIP_CONFIG_FILE:-/etc/pip.conf}")
for file in "${pip_files[@]}"; do
    if [[ -f $file ]]; then
        inside=/root${file#"$HOME"}
        [[ $file == "$HOME"/* ]] || inside=$file
        mkdir -p -- "$root${inside%/*}"
        cp -L -- "$file" "$root$inside"
    fi
done
while IFS= read -r path; do
    copy "$path"
done < <({
    printf '%s\n' "${environment[@]:4}" | sed 's/^[^=]*=//'
    cat -- "${pip_files[@]}" 2>/dev/null || true
} | tr ' =,' '\n' | sed -n 's,^\(file://\)\{0\,1\}\(/[^:]*\)$,\2,p' | sort -u)

# The project
clone=/root/pydatapath
if [[ -n $worktree ]]; then
    mkdir -p -- "$root$clone"
    (cd -- "$here" && git ls-files --cached --others --exclude-standard -z |
        while IFS= read -r -d '' file; do [[ ! -e $file ]] || printf '%s\0' "$file"; done |
        tar --null --files-from=- --create) | tar --extract --no-same-owner --directory="$root$clone"
else
    [[ -z $(git -C "$here" status --porcelain) ]] || say "changes that are not committed are left out (--worktree takes them in)"
    git -c safe.directory='*' clone --quiet --no-local -- "$here" "$root$clone"
fi

# Inside: own mounts, own process numbers; both end with the last process.
cat >"$work/enter.sh" <<'ENTER'
set -euo pipefail
root=$1 clone=$2 count=$3
shift 3
mount --bind "$root" "$root" # a chroot's / is a mount, as on a host
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t bpf bpf "$root/sys/fs/bpf"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
while [[ $count -gt 0 ]]; do
    mount --bind "$1" "$root$1"
    mount -o remount,bind,ro "$root$1"
    shift
    count=$((count - 1))
done
exec chroot "$root" /usr/bin/env -i "${@:2:$1}" /bin/sh -c 'cd "$1" && shift && exec "$@"' sh "$clone" "${@:$1+2}"
ENTER
command=("$@")
[[ $# -gt 0 ]] || command=(sh -ec 'make demo; make test; git status --porcelain')
say "running: ${command[*]}"
end=0
timeout --foreground --kill-after=30 "$limit" \
    unshare --mount --pid --fork --kill-child --propagation private \
    bash "$work/enter.sh" "$root" "$clone" "${#folders[@]}" "${folders[@]}" \
    "${#environment[@]}" "${environment[@]}" "${command[@]}" </dev/null || end=$?
[[ $end != 124 && $end != 137 ]] || say "not done within $limit s: stopped"
say "exit status $end"
exit "$end"
