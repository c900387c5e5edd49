"""The tables of experiments/equal_bytes: they follow from the data that ship with them."""

import json

import pytest

from experiments.equal_bytes import tables
from qsdm.measurement.paired import Difference, difference
from qsdm.outcome import SIGNIFICANT_Z, Outcome
from qsdm.qconfig import QuantConfig

RESULTS = tables.HERE / "results"


@pytest.fixture(scope="module")
def everything():
    return {
        name: json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        for name in tables.ZOO
    }


def test_tables_that_ship_follow_from_the_data_that_ship(everything):
    shipped = (RESULTS / "tables.md").read_text(encoding="utf-8")
    assert tables.markdown(everything) == shipped
    differences = json.loads((RESULTS / "differences.json").read_text(encoding="utf-8"))
    assert json.loads(json.dumps(tables.differences(everything))) == differences


def test_no_rival_is_larger_than_the_budget(everything):
    for results in everything.values():
        for budget, rules in results["rules"].items():
            for rule, digest in rules.items():
                if digest in results["outcomes"]:
                    slack = 1.003 if rule == "kmeans_a-4" else 1  # its codebooks: 4.01 bits
                    assert results["outcomes"][digest]["avg_bits"] <= float(budget) * slack


def test_better_is_said_only_where_the_interval_excludes_zero(everything):
    said = 0
    for _, _, ours, rows in tables.compared_rows(everything):
        for one in rows:
            for metric, larger_is_better in tables.METRICS.items():
                away = one.differences[metric]
                if away is None:
                    assert one.name == tables.FULL  # has no distance to itself
                    continue
                sure = abs(away.value) > SIGNIFICANT_Z * away.standard_error
                ahead = (away.value > 0) == larger_is_better
                cell = tables.cell(one, metric, 2)
                assert cell.startswith("**") == (sure and ahead)
                assert cell.endswith(" !") == (sure and not ahead)
                said += sure
                if len(one.outcomes) == 1:
                    plain = difference(ours, one.outcomes[0], metric)
                    assert plain.value == pytest.approx(away.value)
                    assert plain.standard_error == pytest.approx(away.standard_error)
    assert said


def test_the_conclusion_names_every_rival_that_is_better():
    outcome = Outcome(QuantConfig("tiny", {}), "", {"fd_lite0": 1.0}, 4)

    def row(name, fd, psnr):
        differences = {"fd_lite0": Difference(*fd), "psnr": Difference(*psnr)}
        return tables.Row(name, (outcome,), 3.5, differences)

    rows = [
        row("both", (-5, 1), (1, 0.1)),
        row("ahead", (5, 1), (1, 0.1)),
        row("tie", (-1, 1), (0.1, 0.1)),
        row(tables.VARIANT, (5, 1), (-1, 0.1)),  # ours, too: no rival
    ]
    text = tables.conclusion(rows)
    assert "better than 1 of 3 rivals in both" in text
    assert "Better than ours in Fréchet distance: ahead." in text
    assert "Better than ours in PSNR: none." in text
    assert "Better than neither metric of: tie." in text
