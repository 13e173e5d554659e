"""Speed measurements: what a packet to a service costs, beside a plain bridge and beside kube-proxy's rules."""
