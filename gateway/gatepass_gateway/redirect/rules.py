"""The two tables as nft(8) reads them: what leads local programs to the proxy, and what lets nobody past it.

Every chain names who may and refuses the rest. None says `skuid != x`: a packet whose socket the kernel cannot tell (a
subflow of MPTCP, a socket that its program has closed) ends the rule without a match, and would pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network
from typing import Final, NamedTuple

HELD: Final = "gatepass"
"""The table that belongs to the netlink socket of its holder, and goes when that is closed."""
GUARD: Final = "gatepass_guard"
"""The table that stays when its holder ends, however it ends."""

FIRST_FILTER: Final = "leaving"
"""The chain with which the part begins that both tables have."""

MARK: Final = int.from_bytes(b"gate")
"""`Mark=` of gatepass-gateway.socket. Only root's programs can set one (CAP_NET_ADMIN); those for routing are small."""

Network = IPv4Network | IPv6Network


class RedirectSettings(NamedTuple):
    """What the rules depend on."""

    gateway_port: int
    """The port of the gateway behind, which local programs dial."""
    proxy_port: int
    """The port at `gatepass.daemon.addresses.REDIRECTED_TO` where the proxy listens."""
    proxy_uid: int
    """Who may reach the gateway behind."""
    allow_from: tuple[Network, ...] = ()
    """Where other machines may dial it from; no two overlap."""


def both_tables(settings: RedirectSettings) -> str:
    """Return the transaction that makes both tables, in the place of any that are there and belong to nobody."""
    return f"{_empty(HELD)}table inet {HELD} {{\n\tflags owner\n{_redirect(settings)}{_filter(settings)}}}\n" + (
        guard_table(settings)
    )


def guard_table(settings: RedirectSettings) -> str:
    """Return the transaction that makes the guard, in the place of one that is there."""
    return f"{_empty(GUARD)}table inet {GUARD} {{{_filter(settings)}}}\n"


def no_guard() -> str:
    """Return the transaction after which there is no guard, whether there was one or not."""
    return _empty(GUARD)


def _empty(table: str) -> str:
    # `delete` alone would fail where there is none, and `destroy` takes Linux 6.3.
    return f"add table inet {table}\ndelete table inet {table}\n"


# What opens a connection at a listener. Without the ACK bit, or programs that happen to have the gateway's number as
# the source port of a connection elsewhere would not get their answers.
_OPENING: Final = "tcp flags & (syn | ack) == syn"

# For another machine. What comes back, or is led to an address of ours after this, is judged when it arrives.
_LEAVES: Final = "fib daddr type != local return"


def _redirect(settings: RedirectSettings) -> str:
    # Only what opens a connection: the kernel may ask about later packets when it has forgotten the connection, and
    # the proxy's own then need no longer have a socket.
    dialled = f"tcp dport {settings.gateway_port} {_OPENING} fib daddr type local"
    # Priority -190 is before any other program's translation, and after connection tracking at -200.
    return f"""
	chain redirected {{
		type nat hook output priority -190; policy accept;
		{dialled} meta skuid {settings.proxy_uid} return
		# Who dials 127.0.0.1 or ::1 shares the way with nobody who dials elsewhere from the same address and port: the
		# kernel would change the port of one of them (`proxy_reached`). Nobody else has a reason to come from ::1.
		{dialled} ip6 saddr ::1 ip6 daddr != ::1 return
		{dialled} ip daddr != 127.0.0.1 dnat ip to 127.0.0.2:{settings.proxy_port}
		{dialled} redirect to :{settings.proxy_port}
	}}
"""


def _filter(settings: RedirectSettings) -> str:
    gateway, proxy, uid = settings.gateway_port, settings.proxy_port, settings.proxy_uid
    # Priority 1000 is after whatever others do to a packet.
    return f"""
	chain {FIRST_FILTER} {{
		type filter hook output priority 1000; policy accept;
		tcp dport {gateway} {_OPENING} jump to_gateway
		tcp dport {proxy} {_OPENING} jump to_proxy
		tcp sport {gateway} {_OPENING} jump from_gateway
		tcp sport {proxy} tcp flags & syn == syn jump from_proxy
	}}

	# The proxy reaches the gateway. Whoever else gets here was not redirected: untracked, or by rules of others.
	chain to_gateway {{
		{_LEAVES}
		meta skuid {uid} return
		meta l4proto tcp reject with tcp reset
	}}

	# TCP Fast Open brings data before it is known who answers. The client tries again without. Where it left out the
	# option, the length tells: headers alone have 100 bytes at most.
	chain to_proxy {{
		{_LEAVES}
		tcp option fastopen exists drop
		meta length > 100 drop
		meta l4proto tcp ct original proto-dst {gateway} return
		# Whoever else dials the proxy itself has a port that the kernel changes for the next. The proxy does, to see
		# whether it answers; root may.
		meta skuid {{ 0, {uid} }} return
		meta l4proto tcp reject with tcp reset
	}}

	# Who was bound to the gateway's port before it listened could dial the proxy just when that dials, and have its
	# connection. Refused at once: one that goes on waiting could still.
	chain from_gateway {{
		{_LEAVES}
		meta l4proto tcp reject with tcp reset
	}}

	# Nobody but the proxy, and root, who holds its port while it is stopped, answers or dials from there. While many
	# connections are half open the kernel answers without a socket (SYN cookies), and only the mark tells for whom.
	chain from_proxy {{
		{_LEAVES}
		meta mark {MARK} return
		meta skuid {{ 0, {uid} }} return
		drop
	}}

	chain arriving {{
		type filter hook input priority 1000; policy accept;
		tcp dport {gateway} {_OPENING} jump gateway_from_elsewhere
		tcp dport {proxy} {_OPENING} jump proxy_reached
	}}

	# What comes by lo was judged when it left; unless a route that is not everybody's makes its address a local one, or
	# another program has written another port into it, which connection tracking has not seen.
	chain gateway_from_elsewhere {{
		iif "lo" meta l4proto tcp ct original proto-dst != {gateway} reject with tcp reset
		iif "lo" fib daddr type local return
{_allowed("ip", (network for network in settings.allow_from if network.version == 4))}\
{_allowed("ip6", (network for network in settings.allow_from if network.version == 6))}\
		meta l4proto tcp reject with tcp reset
	}}

	# The proxy asks the kernel whose port a connection comes from. Where two destinations lead to the proxy, the
	# kernel changes the second client's port, to one that may be somebody else's. What is not tracked it cannot change.
	# And loopback addresses are no protection from other machines where `route_localnet` is set.
	chain proxy_reached {{
		ct status & snat == snat reject with tcp reset
		iif "lo" return
		meta l4proto tcp reject with tcp reset
	}}
"""


def _allowed(family: str, networks: Iterable[Network]) -> str:
    listed = ", ".join(map(str, networks))
    return f"\t\t{family} saddr {{ {listed} }} return\n" if listed else ""
