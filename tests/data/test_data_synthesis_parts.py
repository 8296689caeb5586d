"""The parts of synthesis that decide: near duplicates, lists, passages, grounding, grades, results of mathematics."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liuyi.core.errors import DataError
from liuyi.core.words import split
from liuyi.data.synthesis import problems as room
from liuyi.data.synthesis.ask import Answer
from liuyi.data.synthesis.checks import said_of, wrong_with
from liuyi.data.synthesis.grounding import strange_numbers, support
from liuyi.data.synthesis.judge import read_grade
from liuyi.data.synthesis.listing import read_list, read_parts
from liuyi.data.synthesis.passages import passages
from liuyi.data.synthesis.problems import Problem, gym_problems, reasoning_gym
from liuyi.data.synthesis.rouge import Seen, rouge_l
from liuyi.data.synthesis.templates import Template
from liuyi.data.synthesis.verify import final_result, is_right, same_mathematics

WORDS = st.lists(st.sampled_from(["a", "bb", "ccc", "dddd", "把", "灯"]), max_size=12)
PROMPTS = Path(room.__file__).parent / "prompts"


_audit: list[list[str]] = []
"""Where sources that Python compiles are written down at the moment."""


def _listen(event: str, given: tuple[object, ...]) -> None:
    if event == "compile" and _audit:
        _audit[-1].append(given[0].decode() if isinstance(given[0], bytes) else str(given[0]))


sys.addaudithook(_listen)


@contextmanager
def compiled() -> Iterator[list[str]]:
    """The sources that Python compiles within the block."""
    sources: list[str] = []
    _audit.append(sources)
    yield sources
    _audit.pop()


def longest_common_subsequence(one: list[str], other: list[str]) -> int:
    """By the textbook's table."""
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for row, left in enumerate(one, 1):
        for column, right in enumerate(other, 1):
            same = table[row - 1][column - 1] + 1
            table[row][column] = same if left == right else max(table[row - 1][column], table[row][column - 1])
    return table[-1][-1]


@given(WORDS, WORDS)
def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence(one: list[str], other: list[str]) -> None:
    common = longest_common_subsequence(one, other)
    f = 0.0
    if common:
        precision, recall = Fraction(common, len(other)), Fraction(common, len(one))
        f = float(2 * precision * recall / (precision + recall))
    assert rouge_l(one, other) == pytest.approx(f)


@given(st.lists(WORDS, max_size=15), WORDS, st.sampled_from([0.3, 0.5, 0.7, 0.9, 1.0]))
def test_no_near_duplicate_is_missed(known: list[list[str]], words: list[str], threshold: float) -> None:
    """What the prefix filter lets pass is what comparing with every text finds."""
    seen = Seen(threshold)
    for number, other in enumerate(known):
        seen.add(str(number), " ".join(other))
    scores = [rouge_l(words, split(" ".join(other))) for other in known]
    found = seen.nearest(" ".join(words))
    if max(scores, default=0.0) >= threshold:
        assert found == (str(scores.index(max(scores))), max(scores))
    else:
        assert found is None


def test_lists_of_every_kind() -> None:
    assert read_list("1. One\n2) Two\n(3) Three\n6、六\n**7.** Seven") == ["One", "Two", "Three", "六", "Seven"]
    assert read_list("These:\n- Four\n* Five\n• Six") == ["Four", "Five", "Six"]
    assert read_list("Here:\n\n1. **Sum** these:\n   3, 4\n\n2. **Next.**") == ["**Sum** these:\n   3, 4", "Next."]
    parts = "Sort these:\n   **Input:** 5, 2\n   - the largest first\n3.14 among them"
    assert read_list(f"1. {parts}\n2. Next") == [parts, "Next"]
    assert read_list("no list at all") == []
    assert read_list("1.\n2. Something") == ["Something"]


def test_parts_under_headings() -> None:
    names = ("QUESTION", "ANSWER")
    said = {"QUESTION": "What?", "ANSWER": "That,\nand more: this."}
    assert read_parts("QUESTION: What?\nANSWER: That,\nand more: this.", names) == said
    assert read_parts("**Question:** What?\n\n**Answer:** That,\nand more: this.", names) == said
    assert read_parts("QUESTION：什么？\nANSWER：这个。", names) == {"QUESTION": "什么？", "ANSWER": "这个。"}
    for wrong in ("QUESTION: What?", "ANSWER: a\nQUESTION: b", "QUESTION:\nANSWER: a", "", "The QUESTION: x ANSWER: y"):
        assert read_parts(wrong, names) is None, wrong


@given(st.text(alphabet="ab .\n。", max_size=300), st.integers(5, 60))
def test_passages_keep_every_letter_in_order_and_are_bounded(text: str, longest: int) -> None:
    found = list(passages(text, longest))
    assert all(0 < len(passage) <= longest for passage in found)
    assert "".join("".join(found).split()) == "".join(text.split())


def test_passages_end_where_sentences_do() -> None:
    assert list(passages("One two. Three four. Five.", 20)) == ["One two. Three four.", "Five."]
    assert list(passages("一二三。四五六。七八。", 8)) == ["一二三。四五六。", "七八。"]
    assert list(passages("A\n\nB\n\nC", 4)) == ["A\n\nB", "C"]


def test_grounding() -> None:
    assert support("The mill turns", "the wheel of the mill turns slowly") == 1
    assert support("The miller sleeps", "the wheel") == pytest.approx(1 / 3)
    assert support("…", "the wheel") == 0
    assert strange_numbers("In 1912 it had 1,200 seats, 7 doors.", "Built 1912 with 1200 seats") == []
    assert strange_numbers("1913 ４５ 3.14", "1912 and 45") == ["1913", "3.14"]


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ('{"reason": "good", "grade": 4}', 4),
        ('Sure! ```json\n{"reason": "a {b}", "grade": 5}\n```', 5),
        ('{broken {"grade": 2}', 2),
        ('{"grade": "4"}', None),
        ('{"grade": 6}', None),
        ('{"grade": true}', None),
        ('{"grade": 3.5}', None),
        ("grade: 4", None),
        ("[4]", None),
        ("{" * 5000, None),
    ],
)
def test_grades(text: str, grade: int | None) -> None:
    assert read_grade(text) == grade


def test_answers_that_cannot_be_kept() -> None:
    def wrong(text: str, finish: str = "stop") -> str:
        return wrong_with(Answer(text, finish, "m"))  # type: ignore[arg-type]

    assert wrong("Paris.") == wrong("I'm sorryful of nothing, so here is a poem.") == ""
    assert wrong("Pari", "length") == "cut off: longer than max_tokens"
    assert wrong("... !") == wrong("<think>what?</think>  ") == "without a word"
    for refusal in ("I'm sorry, but I can't help.", "抱歉，我无法回答。", "As an AI language model, I have no body."):
        assert wrong(refusal) == "a refusal"
    for refusal in ("I’m sorry.", "I can’t do it.", "I cannot.", "I'm unable to."):
        assert wrong(refusal) == "a refusal"
    assert wrong("Sorry for the delay. " + "Here is all of it. " * 40) == ""
    assert wrong_with(None) == "not answered"
    assert said_of(Answer("<think>\n2+2\n</think>\n\n4", "stop", "m")) == "4"
    assert said_of(Answer("It is 2+2.\n</think>\n\n4", "stop", "m")) == "4"
    assert said_of(Answer("Put it in <think> and </think>.", "stop", "m")) == "Put it in <think> and </think>."


def test_results() -> None:
    assert final_result("Answer: 3\nNo, wait.\n**Final answer**: 4.") == "4"
    assert final_result("答案：五") == "五"
    assert final_result(r"Answer: 3. So \boxed{\frac{1}{\sqrt{2}}}") == r"\frac{1}{\sqrt{2}}"
    assert final_result(r"Answer: $\boxed{7}$") == "7"
    assert final_result("Adding up.\nThe answer to 2 + 2 is: 4.\nThe answer has one figure.") == "4"
    assert final_result("相加得四。\n所以答案是4。") == "4"
    assert final_result("Answer: 4\nThe answer is positive") == "4"
    assert final_result(" 1,204\n") == "1,204"
    assert final_result("Two and two make four, as everybody knows who can count.") is None
    assert final_result("Answer: " + "9" * 400) is None


@pytest.mark.parametrize(
    "text",
    [
        "It is so.\nAnswer: **42**.",
        "Answer: `42`.",
        "The answer is: **42**.",
        r"Answer: \(42\).",
        r"The answer is \[42\]",
        "Because.\n**Final Answer**\n\n42",
        "Because.\n**Answer:**\n$42$.\n",
        "40 + 2 = <<40+2=42>>42\n#### 42",
    ],
)
def test_a_result_is_read_without_its_marks(text: str) -> None:
    """A right result that is read as a wrong one would be rejected in a preference."""
    assert final_result(text) == "42"


@pytest.mark.parametrize(
    "piece", ["\n", " \n", "*", "answer ", "Answer\n", "\nQUESTION", "\n\n\nQUESTION:", "1,", "{", "- "]
)
def test_an_answer_that_repeats_itself_is_read_in_time_that_grows_with_it(piece: str) -> None:
    """Models run in circles until max_tokens, and an endpoint may send megabytes; squares of these take hours."""
    text = piece * (400_000 // len(piece))
    read_parts(text, ("QUESTION", "ANSWER"))
    read_list(text)
    final_result(text)
    read_grade(text)
    wrong_with(Answer(text, "stop", "m"))


def test_a_heading_is_no_result() -> None:
    assert final_result("Answer: ") is None
    assert final_result("Answer:\nLet me think.\nIt is something.") is None


@pytest.mark.parametrize(
    ("reference", "result", "same"),
    [
        ("1/2", r"\frac{1}{2}", True),
        ("0.5", "1/2", True),
        ("1,000", "1000", True),
        ("x^2 + 2x + 1", "(x+1)^2", True),
        ("First 40 + 2.\nAnswer: 42", "42", True),
        ("It is 48/2 = <<48/2=24>>24, and 3 more.\n#### 1,027", "1027", True),
        (r"\{1, 2\}", r"\{2, 1\}", True),
        ("42", "43", False),
        ("x + 1", "x - 1", False),
        ("42", "", False),
        ("42", "forty-two, I think", False),
        ("42", "__import__('os').system('touch /tmp/x')", False),
        ("7", "(100000!)!", False),
    ],
)
def test_mathematics(reference: str, result: str, same: bool) -> None:
    assert same_mathematics(reference, result) is same


@pytest.mark.parametrize("task", room.TASKS)
def test_verifiers_accept_their_reference_and_no_other_answer(task: str) -> None:
    """And none of them compiles what a model wrote."""
    (problem, *_) = gym_problems([task], 3, 5, "MIT")
    assert is_right(problem, problem.reference)
    with compiled() as sources:
        for wrong in ("no idea", "-987654321", "", "[", "marker_7", "[marker_7]", "marker_7 + 1"):
            assert not is_right(problem, wrong), (problem.reference, wrong)
    assert not [source for source in sources if "marker_7" in source]


@pytest.mark.parametrize("task", ["countdown", "n_queens", "puzzle24"])
def test_tasks_that_are_not_offered_compile_what_a_model_wrote(task: str) -> None:
    """So the test above would see it."""
    assert task not in room.TASKS
    dataset = reasoning_gym().create_dataset(task, seed=1, size=1)
    with compiled() as sources:
        for answer in ("marker_7", "[marker_7]", "marker_7 + 1"):
            dataset.score_answer(answer, dataset[0])
    assert [source for source in sources if "marker_7" in source]


def test_a_number_is_right_however_it_is_grouped() -> None:
    problem = next(gym_problems(["products"], 1, 3, ""))
    assert is_right(problem, f"{int(problem.reference):,}")
    assert is_right(problem, f"{problem.reference}.00")
    assert not is_right(problem, f"{problem.reference}1")


def test_problems_depend_on_the_seed_alone() -> None:
    first, again, other = (list(gym_problems(["gcd", "lcm"], 5, seed, "MIT")) for seed in (1, 1, 2))
    assert first == again != other
    assert len({problem.id for problem in first}) == 10
    with pytest.raises(DataError, match="no task 'puzzle24' whose answers are compared"):
        list(gym_problems(["puzzle24"], 1, 1, ""))


def test_a_verifier_that_fails_says_no() -> None:
    broken = Problem("i", "time_intervals", "?", "1", "", "", {"answer": None})
    assert not is_right(broken, "2")


VARIABLES = {
    "instructions": {"examples": ["Name a tree."], "count": 3},
    "evolve": {"instruction": "Name a tree.", "operation": "constraint"},
    "same": {"first": "Name a tree.", "second": "Name two trees."},
    "rephrase": {"passage": "A tree.", "style": "easy"},
    "question": {"passage": "A tree."},
    "persona": {"passage": "A tree."},
    "persona_task": {"persona": "A forester."},
    "solve": {"problem": "2 + 2?"},
    "judge": {"instruction": "Name a tree.", "answer": "Oak", "passage": ""},
}


def test_every_prompt_is_there_in_both_languages_and_uses_what_it_is_given() -> None:
    names = {path.name for path in PROMPTS.glob("*.jinja")}
    assert names == {f"{name}.{language}.jinja" for name in VARIABLES for language in ("en", "zh")}
    for name, variables in VARIABLES.items():
        for language in ("en", "zh"):
            written = Template.ours(name, language).write(**variables)  # type: ignore[arg-type]
            marked = {key: f"mark-{key}" for key in variables if key not in ("examples", "count", "operation", "style")}
            again = Template.ours(name, language).write(**(variables | marked))  # type: ignore[arg-type]
            assert all(mark in again for key, mark in marked.items())
            assert bool(re.search("[\u4e00-\u9fff]", written)) == (language == "zh")
    for language in ("en", "zh"):
        evolve, rephrase = Template.ours("evolve", language), Template.ours("rephrase", language)  # type: ignore[arg-type]
        operations = ("constraint", "depth", "concrete", "reasoning", "input", "breadth")
        assert len({evolve.write(instruction="x", operation=one) for one in operations}) == 6
        assert (
            len({rephrase.write(passage="x", style=one) for one in ("easy", "encyclopedic", "terse", "dialogue")}) == 4
        )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{% if %}", "the template is not valid"),
        ("{{ nothing }}", "uses what there is not: 'nothing' is undefined"),
        ("{{ problem.__class__.__mro__ }}", "the template"),
        ("{% for a in range(9999999) %}x{% endfor %}", "the template fails"),
    ],
)
def test_wrong_templates(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(text)
    with pytest.raises(DataError, match=said) as error:
        Template.read(tmp_path / "own.jinja").write(problem="2 + 2?")
    assert "own.jinja" in error.value.where


def test_a_template_is_named_by_its_text(tmp_path: Path) -> None:
    for text in ("one", "two"):
        (tmp_path / text).mkdir()
        (tmp_path / text / "own.jinja").write_text(text)
    one, two = (Template.read(tmp_path / text / "own.jinja") for text in ("one", "two"))
    assert one.name != two.name
    assert one.name.startswith("own@")
