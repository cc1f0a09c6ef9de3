"""What QEMU is given for an HCA: an emulated NIC with its tap, or a device of the host."""

from pathlib import Path

from kawarimi_testbed import qemu
from kawarimi_testbed.image.build import Image
from kawarimi_testbed.topology import Topology

PASSED_THROUGH = Topology(hca_device="0000:01:00.0")


def command_line(topology: Topology, *, incoming: bool = False) -> str:
    here = Path("/nowhere")
    words = qemu.argv(
        topology, "hosta", "vm1", Image(here), here, here, here, incoming=incoming, with_hca=True
    )
    return " ".join(words)


def test_an_emulated_hca_has_a_tap_on_the_fabric() -> None:
    assert qemu.taps(Topology(), "hosta", "vm1") == {"vm1-eth": "ethernet", "vm1-hca": "fabrica"}
    assert "ifname=vm1-hca" in command_line(Topology())


def test_a_device_of_the_host_is_passed_through_and_needs_no_tap() -> None:
    assert qemu.taps(PASSED_THROUGH, "hosta", "vm1") == {"vm1-eth": "ethernet"}
    words = command_line(PASSED_THROUGH)
    assert "-device vfio-pci,id=hca0,bus=hca-port,host=0000:01:00.0" in words
    assert "vm1-hca" not in words


def test_a_host_without_fabric_has_no_hca() -> None:
    assert qemu.taps(Topology(), "hostb", "vm1") == {"vm1-eth": "ethernet"}


def test_a_destination_never_has_the_device() -> None:
    assert "hca0" not in command_line(Topology(), incoming=True)
    assert "hca0" not in command_line(PASSED_THROUGH, incoming=True)
