"""The table of parameters, and that the documentation shows it as it is."""

from pathlib import Path

import pytest

from simulator import fit
from simulator.config import Config
from simulator.costs import COSTS, ERAS, TABLE, Parameter
from simulator.fit import FITTED
from tests.simulator.points import plan

DOCS = Path(__file__).parents[2] / "docs" / "simulator.md"


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_each_parameter_has_a_unit_a_source_and_a_row_in_the_docs(row: Parameter) -> None:
    assert row.value > 0 and row.unit and row.why
    assert getattr(COSTS, row.name) == row.value
    line = f"| `{row.name}` | {row.value:,} | {row.unit} | {row.source} | {row.why} |"
    assert line in DOCS.read_text()


def test_changed_costs_are_a_copy() -> None:
    assert COSTS.but(ipi_ack_ns=1).ipi_ack_ns == 1
    assert COSTS.ipi_ack_ns != 1


def test_the_fit_is_of_two_equations_for_two_parameters() -> None:
    assert len(FITTED) == 2
    assert abs(fit.residuals(COSTS, 0.005)).max() < 0.02


def test_the_eras_differ_in_all_that_is_said_of_2012() -> None:
    assert ERAS["2012"].byte_lock and not ERAS["today"].byte_lock
    assert ERAS["2012"].requests_max == 64 and ERAS["today"].requests_max is None


def test_dom0s_vcpus_need_a_cpu_each() -> None:
    with pytest.raises(ValueError, match="physical-cpus: 3"):
        Config(plan(), dom0_vcpus=4, physical_cpus=3)


def test_guests_take_the_cpus_that_are_not_dom0s() -> None:
    config = Config(plan(), guests=3, dom0_vcpus=4)
    assert [config.guest_cpu(domid) for domid in (1, 2, 3)] == [4, 5, 6]
    config = Config(plan(), guests=3, dom0_vcpus=4, physical_cpus=6)
    assert [config.guest_cpu(domid) for domid in (1, 2, 3)] == [4, 5, 4]
    config = Config(plan(), guests=3, dom0_vcpus=2, physical_cpus=2)
    assert [config.guest_cpu(domid) for domid in (1, 2, 3)] == [0, 1, 0]
