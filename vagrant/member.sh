#!/usr/bin/env bash
# One machine's part of vagrant/cluster, run in that machine as root; its name tells which part.
#
#   member.sh up            pods, routes and servers; on a node the datapath, too
#   member.sh down          all of that away again
#   member.sh from PLACE ADDRESS PORT                    who answers one call, and whom it saw
#   member.sh spread PLACE CALLS ADDRESS PORT NAME ...   call until each NAME has answered, at most so often
#
# PLACE is a pod, or `here`.
set -euo pipefail

project=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
name=$(hostname)
number=${name#node} # 1 or 2; the router has none
other=$((3 - ${number//[!12]/0}))
client=(/usr/bin/python3 -I -S "$project/pydatapath/lab/client.py")

die() {
    printf '%s: %s\n' "$name" "$*" >&2
    exit 1
}

interface_in() { ip -oneline -4 address show to "$1" | sed -n '1s/^[0-9]*: *\([^ @]*\).*/\1/p'; }

# serve UNIT NAME COMMAND...: a server that says that it is NAME, started by the command that enters its place
serve() {
    local unit=$1 called=$2
    shift 2
    systemd-run --quiet --collect --unit="pydatapath-$unit" --property=RuntimeMaxSec=1day \
        "$@" /usr/bin/python3 -I -S "$project/pydatapath/lab/server.py" "$called"
}

node_up() {
    local uplink pod
    uplink=$(interface_in "192.168.6$number.0/24")
    [[ -n $uplink ]] || die "no interface in 192.168.6$number.0/24: was this machine made with PYDATAPATH_VM_NODES=2?"
    ip link add br0 type bridge
    ip address add "10.244.$number.1/24" dev br0
    ip link set br0 up
    sysctl --quiet --write net.ipv4.ip_forward=1
    for pod in 1 2; do
        ip netns add "pod$pod"
        ip link add "veth$pod" type veth peer name eth0 netns "pod$pod"
        ip link set "veth$pod" master br0 up
        ip -netns "pod$pod" link set lo up
        ip -netns "pod$pod" address add "10.244.$number.1$pod/24" dev eth0
        ip -netns "pod$pod" link set eth0 up
        ip -netns "pod$pod" route add default via "10.244.$number.1"
    done
    udevadm settle --timeout=60 # udev gives new links a MAC address of its choice
    # the other node and its pods are behind the router
    ip route replace "192.168.6$other.0/24" via "192.168.6$number.254"
    ip route replace "10.244.$other.0/24" via "192.168.6$number.254"
    serve pod2 "$name-pod2" ip netns exec pod2
    cd -- "$project"
    .venv/bin/pydatapath load --bridge br0 --uplink "$uplink" --cluster-cidr 10.244.0.0/16
    .venv/bin/pydatapath apply -f vagrant/web.yaml
    ethtool --driver "$uplink" | sed -n "s/^driver: /$uplink is a /p"
    ip route get "10.244.$other.12" | head -n 1
    [[ -z $(nft list ruleset) ]] || die "netfilter has rules here"
    echo "netfilter has no rules"
}

node_down() {
    local pod
    "$project/.venv/bin/pydatapath" --quiet unload || true
    for pod in 1 2; do
        systemctl --quiet stop "pydatapath-pod$pod" 2>/dev/null || true
        ip netns delete "pod$pod" 2>/dev/null || true
    done
    ip link delete br0 2>/dev/null || true
    ip route delete "192.168.6$other.0/24" 2>/dev/null || true
    ip route delete "10.244.$other.0/24" 2>/dev/null || true
}

router_up() {
    sysctl --quiet --write net.ipv4.ip_forward=1
    ip route replace 10.244.1.0/24 via 192.168.61.11
    ip route replace 10.244.2.0/24 via 192.168.62.12
    ip route replace 203.0.113.10/32 via 192.168.61.11 # the service's external IP: to one of the nodes
    serve router router env
}

router_down() {
    systemctl --quiet stop pydatapath-router 2>/dev/null || true
    for network in 10.244.1.0/24 10.244.2.0/24 203.0.113.10/32; do
        ip route delete "$network" 2>/dev/null || true
    done
}

from() {
    local enter=()
    [[ $1 == here ]] || enter=(ip netns exec "$1")
    timeout 60 "${enter[@]}" "${client[@]}" "$2" "$3"
}

# spread PLACE CALLS ADDRESS PORT NAME...
spread() {
    local place=$1 calls=$2 address=$3 port=$4 done=0 answer one
    shift 4
    local -A count=()
    while [[ $done -lt $calls && ${#count[@]} -lt $# ]]; do
        done=$((done + 1))
        answer=$(from "$place" "$address" "$port") || die "call $done of $address:$port from $place was not answered"
        one=${answer%% *}
        [[ " $* " == *" $one "* ]] || die "$address:$port was answered by $one, not by $*"
        [[ -n ${count[$one]-} ]] || echo "$answer"
        count[$one]=$((${count[$one]-0} + 1))
    done
    [[ ${#count[@]} == "$#" ]] || die "of $done calls of $address:$port, ${!count[*]} answered all, of $*"
}

role=node
[[ $name != router ]] || role=router
[[ $name == router || $name == node[12] ]] || die "this machine is none of node1, node2 and router"
case ${1-} in
    up) "${role}_down" && "${role}_up" ;;
    down) "${role}_down" ;;
    from) from "${@:2}" ;;
    spread) spread "${@:2}" ;;
    *) die "unknown command ${1-}" ;;
esac
