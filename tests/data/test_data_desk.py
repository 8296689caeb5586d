"""The desk task: templates to sentences and back, hold-out, schema, determinism."""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liuyi.core.errors import DataError
from liuyi.data.desk import build as building
from liuyi.data.desk.answers import HAND_OFF, answer, answer_schema, parse_answer
from liuyi.data.desk.build import Desk, Plan, build_desk
from liuyi.data.desk.compound import join_requests, share_words
from liuyi.data.desk.expand import Expander
from liuyi.data.desk.facility import LANGUAGES, Facility
from liuyi.data.desk.outside import outside_requests
from liuyi.data.desk.recognise import Ambiguous, Reading, Recogniser
from liuyi.data.desk.split import split_families
from liuyi.data.desk.style import dress, is_question
from liuyi.data.desk.templates import HERE, Grammar, load_grammar
from liuyi.data.desk.typos import mistype
from liuyi.data.desk.write import write_chats, write_evalset

SMALL = Plan(
    train_rows=240,
    practice_rows=60,
    test_items=120,
    dev_items=80,
    familiar_items=30,
    typo_items=30,
    outside_items=20,
    compound_items=20,
)


@pytest.fixture(scope="module")
def facility() -> Facility:
    return Facility.load()


@pytest.fixture(scope="module")
def grammars(facility: Facility) -> dict[str, Grammar]:
    return {language: load_grammar(language, facility) for language in LANGUAGES}


@pytest.fixture(scope="module")
def recognisers(grammars: dict[str, Grammar]) -> dict[str, Recogniser]:
    return {language: Recogniser(grammar.hassil()) for language, grammar in grammars.items()}


@pytest.fixture(scope="module")
def desk(facility: Facility) -> Desk:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "cores", lambda: 1)
        return build_desk(facility, SMALL, seed=7)


def drawn(grammar: Grammar, facility: Facility, every: int, seed: int = 0) -> list[tuple[str, str, str]]:
    expander = Expander(grammar, facility, number_words=0.2)
    rng = random.Random(seed)
    sentences = [expander.draw(template, rng) for template in grammar.templates[::every]]
    return [(s.text, s.answer, s.template.cluster) for s in sentences if s is not None]


@pytest.mark.parametrize("language", LANGUAGES)
def test_sentences_are_recognised_as_they_were_meant(
    language: str, grammars: dict[str, Grammar], facility: Facility, recognisers: dict[str, Recogniser]
) -> None:
    outcomes: Counter[str] = Counter()
    for text, meant, _ in drawn(grammars[language], facility, every=4):
        reading = recognisers[language].read(text)
        if isinstance(reading, Reading):
            outcomes["same" if reading.answer == meant else "other"] += 1
        else:
            outcomes["ambiguous" if isinstance(reading, Ambiguous) else "none"] += 1
    assert outcomes["none"] == 0, "hassil reads every sentence of its own templates"
    assert outcomes["same"] > 0.95 * sum(outcomes.values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_narrowed_recognition_equals_hassil(
    language: str, grammars: dict[str, Grammar], facility: Facility, recognisers: dict[str, Recogniser]
) -> None:
    from hassil import Intents, recognize_all

    intents = Intents.from_dict(grammars[language].hassil())
    texts = [text for text, _, _ in drawn(grammars[language], facility, every=23, seed=3)]
    texts += [
        "play living-room music",
        "what is the capital of france",
        "厨房 的 灯 打开",
        "turn on first-floor lights",
    ]

    def plain(results: object) -> list[tuple[str, list[tuple[str, str]], str]]:
        return sorted(
            (r.intent.name, sorted((e.name, str(e.value)) for e in r.entities_list), r.intent_metadata["cluster"])
            for r in results  # type: ignore[attr-defined]
        )

    for text in texts:
        assert plain(recognisers[language].readings(text)) == plain(recognize_all(text, intents)), text


def test_canonical_slots(recognisers: dict[str, Recogniser]) -> None:
    expected = {
        "turn on the kitchen lights": ("HassTurnOn", {"area": "kitchen", "domain": "light"}),
        "打开厨房的灯": ("HassTurnOn", {"area": "kitchen", "domain": "light"}),
        "turn off the lights": ("HassTurnOff", {"area": HERE, "domain": "light"}),
        "关闭全屋所有灯": ("HassTurnOff", {"domain": "light"}),
        "how many lights are on in the attic": (
            "HassGetState",
            {"area": "attic", "ask": "how_many", "domain": "light", "state": "on"},
        ),
        "unlock the front door": ("HassTurnOff", {"name": "front_door"}),
        "打开前门锁": ("HassTurnOff", {"name": "front_door"}),
        "volume down by 20%": ("HassSetVolumeRelative", {"area": HERE, "volume_step": -20}),
        "set fan speed to 40%": ("HassFanSetSpeed", {"area": HERE, "percentage": 40}),
    }
    for text, (intent, slots) in expected.items():
        reading = recognisers["zh" if re.search("[一-鿿]", text) else "en"].read(text)
        assert isinstance(reading, Reading), text
        assert reading.answer == answer(intent, slots)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_no_family_is_in_two_parts_and_every_meaning_stays_in_training(seed: int, grammars: dict[str, Grammar]) -> None:
    for grammar in grammars.values():
        parts = split_families(grammar.templates, {"test": 0.15, "dev": 0.1, "practice": 0.08}, seed)
        assert set(parts) == {template.cluster for template in grammar.templates}
        training = [template for template in grammar.templates if parts[template.cluster] == "train"]
        assert {t.signature for t in training} == {t.signature for t in grammar.templates}
        assert {t.intent for t in training} == {t.intent for t in grammar.templates}
        shares = Counter(parts.values())
        assert 0.08 < shares["test"] / len(parts) < 0.18
        assert shares["dev"] > 0
        assert shares["practice"] > 0


def test_the_split_depends_on_the_seed(grammars: dict[str, Grammar]) -> None:
    shares = {"test": 0.15}
    one, two = (split_families(grammars["en"].templates, shares, seed) for seed in (1, 2))
    assert one != two
    assert one == split_families(grammars["en"].templates, shares, 1)


def test_sets_share_no_template_and_no_sentence(desk: Desk) -> None:
    plain: dict[str, set[str]] = defaultdict(set)
    for name, rows in desk.rows.items():
        for row in rows:
            plain[name].add(re.sub(r"[\W_]+", "", row.text.casefold()))
            if row.kind in ("new", "covered"):
                assert desk.parts[row.cluster] == name
            if row.kind in ("familiar", "request"):
                assert desk.parts[row.cluster] == ("practice" if name == "practice" else "train")
    learnt = plain["train"] | plain["practice"]
    for name in ("test", "dev", "familiar", "typos", "outside", "compound"):
        assert plain[name], name
        assert not plain[name] & learnt, name
    assert not plain["train"] & plain["practice"]
    assert not plain["test"] & plain["dev"]


def test_the_rules_know_training_templates_only(desk: Desk) -> None:
    for language, grammar in desk.rules.items():
        known = {block["metadata"]["cluster"] for intent in grammar["intents"].values() for block in intent["data"]}
        assert known == {c for c, part in desk.parts.items() if part == "train" and c.startswith(f"{language}.")}
    rows = [row for row in desk.rows["test"] if row.kind == "new"][:40]
    books = {language: Recogniser(grammar) for language, grammar in desk.rules.items()}
    for row in rows:
        reading = books[row.language].read(row.text)
        assert not (isinstance(reading, Reading) and reading.answer == row.answer), row.text


def test_the_schema_takes_every_right_answer_and_no_nonsense(desk: Desk) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(desk.schema)
    jsonschema.Draft202012Validator.check_schema(desk.schema)
    for name, rows in desk.rows.items():
        for row in rows:
            value = json.loads(row.answer)
            for single in value if isinstance(value, list) else [value]:
                assert validator.is_valid(single), (name, row.answer)
    for intent, slots in (
        ("HassTurnOn", {"area": "swimming_pool", "domain": "light"}),
        ("HassTurnOn", {"domain": "light", "extra": 1}),
        ("HassLightSet", {"area": "kitchen", "brightness": 130, "domain": "light"}),
        ("HassFanSetSpeed", {"area": "kitchen", "percentage": 40.5}),
        ("HassStartTimer", {"minutes": 2}),
        ("HassOpenWormhole", {}),
        ("HassSetVolume", {"area": "kitchen"}),
    ):
        assert not validator.is_valid({"intent": intent, "slots": slots}), (intent, slots)


def test_the_schema_names_every_intent(grammars: dict[str, Grammar], facility: Facility) -> None:
    schema = answer_schema(grammars.values(), facility)
    intents = [alternative["properties"]["intent"]["const"] for alternative in schema["anyOf"]]
    assert intents == sorted({t.intent for g in grammars.values() for t in g.templates} | {HAND_OFF})


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_on_any_number_of_cores(
    desk: Desk, facility: Facility, tmp_path: Path
) -> None:
    again = build_desk(facility, SMALL, seed=7)
    for number, made in enumerate((desk, again)):
        for name in ("train", "test"):
            folder = tmp_path / f"{name}{number}"
            folder.mkdir()
            (write_chats if name == "train" else write_evalset)(folder, name, made)
    for name in ("train", "test"):
        files = sorted(path.name for path in (tmp_path / f"{name}0").iterdir())
        assert files == sorted(path.name for path in (tmp_path / f"{name}1").iterdir())
        for file in files:
            assert (tmp_path / f"{name}0" / file).read_bytes() == (tmp_path / f"{name}1" / file).read_bytes()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"intent": "x"}', '{"intent": 1, "slots": {}}', "[" * 200_000])
def test_what_is_no_answer_is_read_as_none(text: str) -> None:
    assert parse_answer(text) is None


def test_artifacts_hold_what_is_promised(desk: Desk, tmp_path: Path) -> None:
    write_chats(tmp_path, "train", desk)
    table = pq.read_table(tmp_path / "chats.parquet")
    assert table.column_names == ["id", "messages", "source", "license", "cluster"]
    assert len(set(table.column("id").to_pylist())) == table.num_rows
    messages = json.loads(table.column("messages")[0].as_py())
    assert [message["role"] for message in messages] == ["user", "assistant"]
    assert parse_answer(messages[1]["content"]) is not None
    assert set(table.column("license").to_pylist()) == {"CC-BY-4.0"}
    write_evalset(tmp_path, "compound", desk)
    assert json.loads((tmp_path / "schema.json").read_text())["type"] == "array"
    assert json.loads((tmp_path / "evalset.json").read_text())["scorer"] == "json_exact"
    references = pq.read_table(tmp_path / "items.parquet").column("reference").to_pylist()
    assert all(2 <= len(json.loads(reference)) <= 3 for reference in references)


def test_counts_are_as_planned(desk: Desk) -> None:
    counts = {name: len(rows) for name, rows in desk.rows.items()}
    assert counts["train"] == SMALL.train_rows
    assert counts["outside"] == SMALL.outside_items
    assert counts["compound"] == SMALL.compound_items
    assert {row.language for row in desk.rows["test"]} == set(LANGUAGES)
    kinds = Counter(row.kind for row in desk.rows["train"])
    assert kinds["typo"] > 0
    assert kinds["outside"] == 2 * round(SMALL.train_rows / 2 * SMALL.outside_rows)
    assert sum(desk.dropped.values()) > 0


def test_outside_requests_are_read_by_no_template(
    grammars: dict[str, Grammar], facility: Facility, recognisers: dict[str, Recogniser]
) -> None:
    texts: dict[str, set[str]] = {}
    for part in ("train", "dev", "test"):
        source = outside_requests(part, grammars["en"], facility, recognisers["en"], seed=1)  # type: ignore[arg-type]
        texts[part] = {sentence.text for sentence, _ in zip(source, range(40), strict=False)}
        assert all(recognisers["en"].read(text) is None for text in texts[part])
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["dev"]


@given(st.sampled_from(LANGUAGES), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_typing_errors_change_letters_and_never_numbers(language: str, seed: int) -> None:
    text = {"en": "set the kitchen lights to 45 percent", "zh": "把厨房的灯调到45%"}[language]
    spoilt = mistype(text, language, random.Random(seed))  # type: ignore[arg-type]
    if spoilt is not None:
        assert spoilt != text
        assert re.findall(r"\d+", spoilt) == ["45"]
        assert abs(len(spoilt) - len(text)) <= 2


def test_dressing_keeps_free_text_whole() -> None:
    for seed in range(200):
        assert dress("broadcast dinner is ready", "en", random.Random(seed), free_text=True).lower() == (
            "broadcast dinner is ready"
        )
    dressed = {dress("打开厨房的灯", "zh", random.Random(seed), free_text=False) for seed in range(200)}
    assert len(dressed) > 5
    assert all("打开厨房的灯" in text for text in dressed)


@pytest.mark.parametrize(
    ("text", "language", "asks"),
    [
        ("is the front door locked", "en", True),
        ("lock the front door", "en", False),
        ("客厅有几个灯是开着的", "zh", True),
        ("打开客厅的灯", "zh", False),
    ],
)
def test_questions_are_told_from_orders(text: str, language: str, asks: bool) -> None:
    assert is_question(text, language) is asks  # type: ignore[arg-type]


def test_compounds_hold_the_answers_of_their_parts(
    grammars: dict[str, Grammar], facility: Facility, recognisers: dict[str, Recogniser]
) -> None:
    rng = random.Random(5)
    for language in LANGUAGES:
        expander = Expander(grammars[language], facility, 0.0)
        templates = [t for t in grammars[language].templates if t.intent == "HassTurnOn"]
        sentences = [s for s in (expander.draw(rng.choice(templates), rng) for _ in range(20)) if s is not None]
        joined = join_requests(sentences[:3], language, rng)
        assert json.loads(joined.reference) == [json.loads(sentence.answer) for sentence in sentences[:3]]
        assert all(sentence.text in joined.text for sentence in sentences[:3])
        for _ in range(20):
            assert len(share_words(facility, language, rng).answers) == 2


def test_a_facility_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    path = tmp_path / "facility.yaml"
    rooms = "  a: {en: [hall], zh: [厅]}\n  b: {en: [Hall], zh: [房]}"
    good = f"name: F\nfloors: {{}}\nareas:\n{rooms}\ndevices: {{}}\nzones: {{}}\n"
    path.write_text(good)
    with pytest.raises(DataError, match="'a' and 'b' share the name 'Hall'"):
        Facility.load(path)
    path.write_text(good.replace("zh: [房]", "zh: []"))
    with pytest.raises(DataError, match=r"areas\.b\.zh"):
        Facility.load(path)
    for text in ("areas: [", "made: 2020-13-45", "[" * 20_000):
        path.write_text(text)
        with pytest.raises(DataError, match="cannot be read"):
            Facility.load(path)
    with pytest.raises(DataError, match="cannot be read"):
        Facility.load(tmp_path / "none.yaml")


@pytest.mark.parametrize("areas", ["{}", "{a: {en: [hall], zh: [厅]}}"])
def test_a_small_facility_gives_what_it_can(areas: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("liuyi.data.desk.build.cores", lambda: 1)
    path = tmp_path / "small.yaml"
    lamp = "{l: {en: [lamp], zh: [灯], domain: light}}"
    path.write_text(f"name: F\nintents: [HassTurnOn]\nfloors: {{}}\nareas: {areas}\ndevices: {lamp}\nzones: {{}}\n")
    sizes = dict.fromkeys(("test_items", "dev_items", "familiar_items", "typo_items", "outside_items"), 10)
    made = build_desk(Facility.load(path), Plan(train_rows=100, practice_rows=10, compound_items=20, **sizes), 1)
    kinds = {row.kind for row in made.rows["compound"]}
    assert len({row.text for row in made.rows["compound"]}) == 20
    assert kinds == ({"joined"} if areas == "{}" else {"joined", "shared"})


def test_free_text_that_a_facility_lacks_is_named(facility: Facility) -> None:
    announcing = facility.model_copy(update={"intents": ("HassBroadcast",)})
    grammar = load_grammar("en", announcing)
    expander = Expander(grammar, announcing, 0.0)
    with pytest.raises(DataError, match="takes free text 'message'"):
        expander.draw(grammar.templates[0], random.Random(0))


def test_an_intent_that_nothing_asks_for_is_named(facility: Facility) -> None:
    with pytest.raises(DataError, match="'HassTurnOnn'") as raised:
        build_desk(facility.model_copy(update={"intents": ("HassTurnOnn",)}), Plan(), seed=1)
    assert "HassTurnOn'" in raised.value.hint
