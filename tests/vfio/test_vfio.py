"""A guest gives up its real (vfio-pci) HCA, moves, and gets an HCA again.

One run in an outer guest, which has an IOMMU and virtualisation; each test looks at one thing that
the run has shown. Not part of the normal run: `make vfio`.
"""

from collections.abc import Callable

import pytest

from kawarimi_bridge.cli.output import Progress
from kawarimi_testbed.image.build import build_image
from kawarimi_testbed.vfio.nested import run_nested
from kawarimi_testbed.vfio.scenario import TOPOLOGY, Report
from kawarimi_wire.errors import KawarimiError

pytestmark = [pytest.mark.vfio, pytest.mark.root, pytest.mark.timeout(900)]

HCA = f"e1000e {TOPOLOGY.hca_mac('hosta', 'vm1')}"


@pytest.fixture(scope="module")
def report() -> Report:
    progress = Progress()
    image = build_image(progress)
    try:
        return run_nested(image, progress)
    except KawarimiError as error:
        error.add_note(f"logs: {error.facts.get('evidence', 'none')}")
        raise


def test_the_guest_has_verbs_over_the_real_device(report: Report) -> None:
    assert report.hca_before == HCA


def test_a_guest_with_its_hca_is_not_migrated(report: Report) -> None:
    assert report.refused_by_slot["slug"] == "hca-attached"
    assert report.refused_by_slot["facts"] == {"slot": "hca-port", "hca": "hca0"}


def test_a_device_that_no_slot_shows_is_refused_in_qemus_words(report: Report) -> None:
    assert report.refused_by_qemu["slug"] == "hca-attached"
    assert "VFIO" in str(report.refused_by_qemu["what"])


def test_the_device_is_unplugged_and_its_verbs_are_gone(report: Report) -> None:
    assert report.unplugged is not None
    assert report.verbs_while_unplugged == ""


def test_the_guest_migrates_without_its_hca(report: Report) -> None:
    assert report.migration is not None
    assert report.migration.transferred > 0


def test_verbs_are_active_again_over_the_same_device(report: Report) -> None:
    assert report.hca_after == HCA


def test_the_durations_are_shown(report: Report, figure: Callable[[str], None]) -> None:
    for step, seconds in report.seconds.items():
        figure(f"{step}: {seconds:.2f} s")
    figure(f"{report.migration}")
