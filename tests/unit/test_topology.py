"""Addresses that both sides compute must be distinct, and names must be usable."""

from __future__ import annotations

import pytest

from kawarimi_testbed.topology import HcaVariant, HostSpec, Topology
from kawarimi_wire.errors import UsageError

TOPOLOGY = Topology(guests=8)


def test_every_mac_and_address_is_unique():
    hosts = [host.name for host in TOPOLOGY.hosts]
    macs = [TOPOLOGY.guest_mac(guest) for guest in TOPOLOGY.guest_names]
    macs += [TOPOLOGY.hca_mac(host, guest) for host in hosts for guest in TOPOLOGY.guest_names]
    macs += [TOPOLOGY.bridge_mac(host, "ethernet") for host in hosts]
    assert len(set(macs)) == len(macs)
    addresses = [TOPOLOGY.switch_address, *map(TOPOLOGY.host_address, hosts)]
    addresses += map(TOPOLOGY.guest_address, TOPOLOGY.guest_names)
    addresses += [
        address
        for host in hosts
        for guest in TOPOLOGY.guest_names
        if (address := TOPOLOGY.hca_address(host, guest))
    ]
    assert len(set(addresses)) == len(addresses)


def test_a_host_without_fabric_gives_no_hca_address():
    assert TOPOLOGY.hca_address("hostb", "vm1") is None
    a, c = TOPOLOGY.hca_address("hosta", "vm1"), TOPOLOGY.hca_address("hostc", "vm1")
    assert a.rpartition(".")[0] != c.rpartition(".")[0]


def test_hosts_of_one_fabric_share_its_subnet():
    shared = Topology(hosts=(HostSpec("left", "one"), HostSpec("right", "one")))
    assert shared.hca_address("left", "vm1") == shared.hca_address("right", "vm1")
    assert shared.hca_mac("left", "vm1") != shared.hca_mac("right", "vm1")


def test_interface_names_fit_into_the_kernels():
    longest = Topology(name="a" * 12, hosts=(HostSpec("h" * 12, "f" * 12),))
    assert all(len(f"br-{fabric}") <= 15 for fabric in longest.fabrics)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": "a" * 13},
        {"name": "../etc"},
        {"guests": 0},
        {"guests": 9},
        {"hosts": (HostSpec("host a", None),)},
        {"hosts": (HostSpec("hosta", "br/x"),)},
    ],
)
def test_bad_declarations_are_refused(fields):
    with pytest.raises(UsageError):
        Topology(**fields)


def test_unknown_names_say_what_there_is():
    with pytest.raises(UsageError) as caught:
        TOPOLOGY.host("hostx")
    assert "hosta, hostb, hostc" in caught.value.hint
    with pytest.raises(UsageError):
        TOPOLOGY.guest_number("vm9")


def test_the_slow_nic_has_no_jumbo_frames():
    assert Topology(hca=HcaVariant.E1000E).hca_mtu == 1500
    assert Topology().hca_mtu == 4200
