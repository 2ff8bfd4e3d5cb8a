"""For guest_mode.py inside the lab VM: the kernel's own IPIP and GRE tunnels from the client to lbd, of each family in each.

    client ── device of the kernel ══ tunnel ══ 192.0.2.1, 2001:db8:1::1 [ lbd ]

What is inside for a service is lbd's. The balancer's kernel has a device for one of the tunnels too, and what is inside for
nobody of lbd's is its own: a ping to the device's address.
"""

from collections.abc import Callable

from tests.vm.guest import note, sh
from tests.vm.guest_site import CLIENT, LB_CLIENT

# device: type of link, family outside, families inside, lbd's word
DEVICES = {
    "d44": ("ipip", 4, (4,), "ipip"),
    "d64": ("sit", 4, (6,), "ipip"),
    "d6": ("ip6tnl mode any", 6, (4, 6), "ipip"),
    "g4": ("gre", 4, (4, 6), "gre"),
    "g6": ("ip6gre", 6, (4, 6), "gre"),
}
CASES = [(name, inner) for name, (_, _, inners, _) in DEVICES.items() for inner in inners]
REQUESTS = 5
CONFIG = "".join(
    f"""
[[tunnel]]
name = "{kind}{outer}"
type = "{kind}"
local = "{LB_CLIENT[outer]}"
remote = "{CLIENT[outer]}"
"""
    for kind in ("ipip", "gre")
    for outer in (4, 6)
)
OWN = ("172.31.0.1", "172.31.0.2")  # of the kernels' own tunnel, at the balancer and at the client


def devices() -> None:
    for name, (kind, outer, _, _) in DEVICES.items():
        sh(f"ip -n client link add {name} type {kind} local {CLIENT[outer]} remote {LB_CLIENT[outer]}")
        sh(f"ip -n client link set {name} up")
    sh(f"ip link add g4 type gre local {LB_CLIENT[4]} remote {CLIENT[4]}; ip link set g4 up; ip addr add {OWN[0]}/30 dev g4")
    sh(f"ip -n client addr add {OWN[1]}/30 dev g4")
    for ns in ("", "ip netns exec client "):
        sh(f"{ns}sh -c 'for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done'")


def play(vips: dict[int, str], port: int, curl: Callable[..., str]) -> dict[str, int]:
    """Right answers by device and family inside; the way there is a tunnel's, the way back not."""
    found = {}
    for name, inner in CASES:
        plen = 32 if inner == 4 else 128
        url = f"http://{vips[4]}:{port}/" if inner == 4 else f"http://[{vips[6]}]:{port}/"
        sh(f"ip -n client -{inner} route replace {vips[inner]}/{plen} dev {name} src {CLIENT[inner]}")
        found[f"{name} {inner}"] = curl("-H 'Connection: close'", *[url] * REQUESTS).count("hello\n")
        note(name, inner, found[f"{name} {inner}"])
        sh(f"ip -n client -{inner} route del {vips[inner]}/{plen} dev {name}")
    found["kernel"] = sh(f"ip netns exec client ping -c 3 -i 0.2 -W 10 {OWN[0]}").count(" bytes from ")
    return found
