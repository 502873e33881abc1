"""The questions that an arbiter was trained on, and tests that meet them again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file, save_file

from cospec.errors import CheckpointError
from cospec.tasks import Example
from cospec.tasks.gsm_symbolic import TEMPLATE
from cospec.tasks.trained_on import FILE, Overlap, hashes_of, overlap, unseen, write_trained_on

if TYPE_CHECKING:
    from pathlib import Path


def plain(text: str) -> Example:
    return Example(text, text, "1")


def word_problem(text: str, template: int) -> Example:
    return Example(text, text, "1", {TEMPLATE: template})


def test_questions_are_found_again_whatever_their_blanks(tmp_path: Path) -> None:
    write_trained_on(tmp_path, [plain(f"What is {i} + 1?") for i in range(300)])
    asked = [plain("What is  7 +\n1? "), plain("What is 299 + 1?"), plain("What is 300 + 1?")]
    assert overlap(tmp_path, asked) == Overlap(2, 0)
    assert overlap(tmp_path, asked[2:]) == Overlap(0, 0)


def test_hashes_of_other_questions_are_kept_as_well(tmp_path: Path) -> None:
    audited = [plain("What is 7 + 1?"), word_problem("Ann has 3 pens", 5)]
    write_trained_on(tmp_path, [plain("What is 8 + 1?")], hashes_of(audited))
    asked = [*audited, plain("What is 8 + 1?"), word_problem("Ben has 3 cups", 5), plain("x")]
    assert overlap(tmp_path, asked) == Overlap(3, 1)


def test_unseen_problems_are_those_without_a_hash(tmp_path: Path) -> None:
    asked = [plain("What is 1 + 1?"), plain("What is 2 + 1?")]
    assert unseen(tmp_path, asked) == asked, "the folder does not tell"
    write_trained_on(tmp_path, asked[:1])
    assert unseen(tmp_path, [plain("What  is 1 + 1?"), asked[1]]) == asked[1:]


def test_twins_are_counted_apart_and_only_where_the_task_tells_templates(tmp_path: Path) -> None:
    write_trained_on(tmp_path, [word_problem("Ann has 3 pens", 5), plain("Ann has 4 pens")])
    same = word_problem("Ann has 3 pens", 5)
    twin = word_problem("Ben has 3 cups", 5)
    others = [
        word_problem("Ben has 4 cups", 5),
        word_problem("Ben has 3 cups", 6),
        plain("Ben has 3 cups"),
        plain("Ben has 4 pens"),
        Example("mine", "Ben has 3 cups", "1", {"template": 5}),  # found: taken for a twin
    ]
    assert overlap(tmp_path, [same, twin, *others]) == Overlap(1, 1)


def test_a_folder_that_does_not_tell_gives_no_count(tmp_path: Path) -> None:
    assert overlap(tmp_path, [plain("x")]) is None


def test_the_file_has_five_bytes_a_question_and_each_question_once(tmp_path: Path) -> None:
    write_trained_on(tmp_path, [plain(f"Question {i % 1000}") for i in range(1500)])
    assert load_file(tmp_path / FILE)["questions"].shape == (1000, 5)
    assert (tmp_path / FILE).stat().st_size < 5300
    assert overlap(tmp_path, [plain(f"Question {i}") for i in range(900, 1200)]) == Overlap(100, 0)


def test_no_questions_are_no_overlap(tmp_path: Path) -> None:
    write_trained_on(tmp_path, [])
    assert overlap(tmp_path, [plain("x")]) == Overlap(0, 0)


@pytest.mark.parametrize("damage", ["text", "shape", "name"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    write_trained_on(tmp_path, [plain("x")])
    path = tmp_path / FILE
    if damage == "text":
        path.write_text("no tensors")
    else:
        tensors = load_file(path)
        questions = tensors.pop("questions")
        name = "question" if damage == "name" else "questions"
        save_file({name: questions[:, :4].contiguous(), "twins": tensors["twins"]}, path)
    with pytest.raises(CheckpointError, match=r"trained_on.safetensors is damaged .*remove it"):
        overlap(tmp_path, [plain("x")])
