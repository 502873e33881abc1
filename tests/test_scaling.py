"""The page on scaling says what its script computes."""

from __future__ import annotations

import re

from experiments.scaling import scaling


def test_the_page_has_the_table_of_the_measured_numbers_and_its_shares() -> None:
    scaling.show_plan(check=True)
    page = scaling.PAGE.read_text()
    rows = dict(re.findall(r"^\| (\w+) \| (.+) \|$", page, re.MULTILINE))
    results = [float(cell.split()[0]) for cell in rows["results"].split("|")]
    rounds = [60 * float(cell.split()[0]) for cell in rows["round"].split("|")]
    shares = [round(100 * one / whole) for one, whole in zip(results, rounds, strict=True)]
    said = f"({results[0]:.0f} s on one host) is {shares[0]} % of the round on 8 GPUs and "
    assert said + f"{shares[1]} % on 64" in page
