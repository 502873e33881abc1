"""The page, by parsing it: true numbers, all sections, nothing that is loaded or run."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from cospec.report.page import Pictures, to_html
from cospec.report.read import read_all
from cospec.report.traces import tell

from .conftest import ARMS, EVIL, eval_document, trace_document

VOID = {"meta", "link", "wbr", "br", "img", "input", "hr"}


class Node:
    def __init__(self, tag, attributes):
        self.tag, self.attributes, self.children = tag, dict(attributes), []

    def find(self, tag, **wanted):
        """All elements below of a tag, or "*", with these attributes."""
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in wanted.items()}
        for child in self.children:
            if isinstance(child, Node):
                has = all(child.attributes.get(n) == value for n, value in wanted.items())
                if tag in (child.tag, "*") and has:
                    yield child
                yield from child.find(tag, **{n.replace("-", "_"): v for n, v in wanted.items()})

    @property
    def text(self):
        return "".join(c.text if isinstance(c, Node) else c for c in self.children)


class Tree(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.open = [Node("root", [])]
        self.feed(page)
        assert len(self.open) == 1, f"not closed: {self.open[-1].tag}"
        self.root = self.open[0]

    def handle_starttag(self, tag, attributes):
        node = Node(tag, attributes)
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag, attributes):
        self.open[-1].children.append(Node(tag, attributes))

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        self.open[-1].children.append(data)


@pytest.fixture(scope="module")
def page(results):
    inputs = read_all([results])
    return to_html(inputs, Pictures(inputs), f"A title {EVIL}")


@pytest.fixture(scope="module")
def root(page):
    return Tree(page).root


def words(node):
    return " ".join(node.text.split())


def test_a_token_whose_text_was_cut_off_has_a_button_with_a_sign():
    document = trace_document()
    row = document["rows"][0]
    row["tokens"][2] = ["", "correction"]  # what it wrote, a line break, began the stop string
    (told,) = tell([row])
    assert (told.pieces[-1].text, told.pieces[-1].tail) == ("↵", "")


def test_the_table_has_the_numbers_of_the_file_with_the_best_in_bold(root):
    (panel,) = root.find("div", id="panel-3")
    table = next(panel.find("table"))
    heads = [words(head) for head in table.find("th", scope="col")]
    (body,) = table.find("tbody")
    rows = list(body.find("tr"))
    assert len(rows) == len(ARMS)
    for row, arm in zip(rows, ARMS, strict=True):
        assert words(next(row.find("span", class_="name"))) == arm["name"]
        shown = dict(zip(heads[1:], map(words, row.find("td")), strict=True))
        low, high = (100 * end for end in arm["accuracy_ci95"])
        assert shown["right (95 %)"] == f"{arm['accuracy']:.1%} ({low:.1f} to {high:.1f})"
        assert shown["won / lost"] == f"{arm['wins']} / {arm['losses']}"
        assert shown["tokens/s"] == f"{arm['tokens_per_s']:.0f}"
        assert float(shown["over target"].split("x")[0]) == arm["speedup_vs_target"]
    bold = [[words(b) for b in row.find("b")] for row in rows]
    assert bold[3][0] == "60.0% (55.0 to 65.0)" and bold[4][0] == "2500"
    assert bold[0] == ["0.300", "30.0"] and bold[1] == []


def test_every_comparison_has_a_tab_that_names_its_panel(root):
    tabs = list(root.find("button", role="tab"))
    titles = ["gsm8k, bundled:family, batch 16", "gsm8k, bundled:family, batch 16, temperature 1"]
    assert [words(tab) for tab in tabs] == [*titles, "gsm8k, Big-7B / Small-1B"]
    for tab in tabs:
        (panel,) = root.find("div", id=tab.attributes["aria-controls"])
        assert panel.attributes["aria-labelledby"] == tab.attributes["id"]


def test_a_mismatch_is_a_button_that_names_what_it_opens(root):
    first, _ = root.find("details", class_="trace")
    assert "won: the target alone is wrong" in words(first)
    override, bonus = first.find("button", type="button")
    assert override.attributes["class"] == "t override" and override.text == EVIL
    assert bonus.attributes["class"] == "t bonus"
    (ruling,) = root.find("div", id=override.attributes["aria-controls"])
    assert "Override: the draft's token stands at token 1, score 0.875" in words(ruling)
    cells = [words(cell) for cell in next(ruling.find("tbody")).find("td")]
    assert cells == [EVIL, "↵", "0.250", "0.500", "0.750", "0.125", "right", "wrong"]


def test_texts_of_two_arms_are_compared_word_by_word(root):
    (texts,) = root.find("section", id="texts")
    (diff,) = texts.find("details")
    assert "p/1: target, then runs/ours (eval.json" in words(diff)
    assert "only the second right" in words(diff)
    assert [node.text for node in diff.find("del")] == ["2"]
    assert [node.text for node in diff.find("ins")] == ["3"]
    assert EVIL in diff.text


def test_every_search_names_a_section_of_the_page(root):
    boxes = [box.attributes["data-in"] for box in root.find("input", type="search")]
    assert boxes == ["texts", "traces"]
    for name in boxes:
        (section,) = root.find("section", id=name)
        assert all(child in section.children for child in section.find("details"))


def test_a_veto_is_told_and_a_break_can_be_clicked(root):
    _, second = root.find("details", class_="trace")
    (button,) = second.find("button", type="button")
    assert button.text == "↵"
    assert "an override was turned down" in words(second)
    assert "it would end the text or keep it from ending" in words(second)


def test_text_of_models_and_files_is_shown_and_never_run(page, root):
    assert len(list(root.find("script"))) == 1, "the page's own"
    assert not list(root.find("img"))
    assert "alert(" not in next(root.find("script")).text
    assert not any(name.startswith("on") for n in root.find("*") for name in n.attributes)
    assert words(next(root.find("h1"))) == f"A title {EVIL}"
    assert page.count(EVIL) == 0


def test_controls_in_texts_of_models_are_shown_and_turn_no_line_around(page):
    assert page.count(r"user\u202etxt.exe\x1b") == 3
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x1b]", page)


def test_the_page_loads_nothing(page, root):
    for node in root.find("*"):
        for name in ("src", "href", "srcset", "action", "data"):
            value = node.attributes.get(name, "#")
            assert value.startswith(("#", "data:")), (node.tag, name, value)
    assert not re.search(r"https?://|@import|url\((?!#)", page)


def test_ids_are_unique_and_every_reference_has_its_target(page, root):
    ids = [node.attributes["id"] for node in root.find("*") if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    wanted = {node.attributes["href"][1:] for node in root.find("*") if "href" in node.attributes}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", page))
    assert wanted - {"ata:,"} <= set(ids)


def test_figures_take_their_colours_from_the_page(root):
    figures = list(root.find("svg"))
    assert len(figures) == 2 * (3 + 3 + 2 + 2 + 1 + 1), "each at two widths"
    (style,) = root.find("style")
    defined = set(re.findall(r"(--[\w-]+):", style.text))
    for figure in figures:
        styles = " ".join(n.attributes.get("style", "") for n in figure.find("*"))
        assert set(re.findall(r"var\((--[\w-]+)\)", styles)) <= defined
        assert "var(--ink)" in styles and not re.search(r"#[0-9a-f]{6}", styles)
        assert figure.attributes["role"] == "img" and figure.attributes["aria-label"]


def test_missing_inputs_leave_out_their_sections(tmp_path):
    import json

    path = tmp_path / "e.json"
    path.write_text(json.dumps(eval_document(ARMS[:3])))
    inputs = read_all([path])
    root = Tree(to_html(inputs, Pictures(inputs), "Small")).root
    assert [s.attributes["id"] for s in root.find("section")] == ["quality", "sources"]
    assert not list(root.find("button", role="tab")), "one comparison needs no tabs"
    assert [link.attributes["href"] for link in root.find("a")] == ["#quality", "#sources"]


def test_all_sections_are_there_and_linked(root):
    sections = [s.attributes["id"] for s in root.find("section")]
    assert sections == [
        "quality", "acceptance", "mismatches", "reliability", "training", "texts", "traces",
        "sources",
    ]  # fmt: skip
    assert [link.attributes["href"][1:] for link in root.find("a")] == sections
