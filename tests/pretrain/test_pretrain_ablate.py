"""Ablations: what is decided, what is published, and that a kill changes nothing."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pretrain_support import GARDEN, TINY, sentences, shuffled, small_tokenizer, tokens_of

import in_process
from liuyi.core.artifact import Artifact
from liuyi.core.effect import Effect
from liuyi.core.errors import DataError, StepError
from liuyi.core.home import Home
from liuyi.evaluate.report import build_report, page
from liuyi.model.tokenizer import train_bpe
from liuyi.pretrain.ablate import proxies, workers
from liuyi.pretrain.ablate.heldout import sample_evenly
from liuyi.pretrain.ablate.proxies import points_of
from liuyi.pretrain.bits import Documents


class Desk:
    """Two arms, one of which is garbage, and two sets of held-out documents."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.built, self.tokenizer = small_tokenizer(home)
        good = sentences(160, seed=3)
        self.good = self.tokens("good", good)
        self.garbage = self.tokens("garbage", shuffled(good, seed=4))
        self.same = self.tokens("held", sentences(40, seed=5))
        self.other = self.tokens("garden", sentences(40, seed=6, words=GARDEN))

    def tokens(self, name: str, texts: list[str], clusters: int = 8) -> Artifact:
        return tokens_of(self.home, self.built, texts, name, clusters=clusters)

    def ablate(self, workdir: Path, arms: list[Artifact], heldout: list[Artifact], **params: object) -> Artifact:
        workdir.mkdir(exist_ok=True)
        inputs = {"arms": arms, "heldout": heldout, "tokenizer": self.tokenizer}
        fixed = {**TINY, "token_budget": 256 * 24, "seeds": 3, "points": 2}
        made = in_process.run_step(self.home, workdir, "pretrain.ablate", inputs, **{**fixed, **params})
        return made["verdict"]


@pytest.fixture
def desk(home: Home, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """Proxies are trained in the test's own process: to start another takes longer than they do."""
    monkeypatch.setattr(workers, "cores", lambda: 1)
    return Desk(home)


def test_garbage_loses(desk: Desk, tmp_path: Path) -> None:
    verdict = desk.ablate(
        tmp_path / "w",
        [desk.garbage, desk.good],
        [desk.same, desk.other],
        labels=["garbage", "good"],
        heldout_labels=["the same", "garden"],
    )
    said = json.loads(verdict.file("verdict.json").read_text())
    assert (said["decision"], said["chosen"]) == ("promoted", "good")
    same, garden = said["comparisons"]
    assert same["subset"] == "the same"
    assert same["high"] < 0
    assert same["p_adjusted"] < 0.05
    losses = pq.read_table(verdict.file("losses.parquet")).to_pandas()
    assert len(losses) == 2 * 3 * 80
    totals = losses.groupby(["arm", "heldout"])[["bits", "bytes"]].sum()
    for one in (same, garden):
        before, after = (totals.loc[(arm, one["subset"])] for arm in ("garbage", "good"))
        assert one["before"] == pytest.approx(before["bits"] / before["bytes"])
        assert one["delta"] == pytest.approx(after["bits"] / after["bytes"] - before["bits"] / before["bytes"])
    curves = pq.read_table(verdict.file("curves.parquet")).to_pandas()
    assert sorted(curves["tokens"].unique()) == [256 * 12, 256 * 24]
    good = curves[(curves["arm"] == "good") & (curves["heldout"] == "the same")].groupby("tokens")["bits_per_byte"]
    assert good.mean().is_monotonic_decreasing
    shown = page(build_report([verdict]))
    assert 'class="band c1"' in shown
    assert "Use &#39;good&#39;" in shown


def test_the_same_data_twice_differs_by_nothing(desk: Desk, tmp_path: Path) -> None:
    """Seeds are those of the other arm, so proxies of equal tokens are equal to the bit."""
    verdict = desk.ablate(tmp_path / "w", [desk.good, desk.good], [desk.same], points=1)
    said = json.loads(verdict.file("verdict.json").read_text())
    (only,) = said["comparisons"]
    assert (only["delta"], only["p_value"], said["decision"]) == (0.0, 1.0, "held")
    assert only["low"] < 0 < only["high"]
    seeds = pq.read_table(verdict.file("losses.parquet")).to_pandas().groupby(["arm", "seed"])["bits"].sum()
    assert seeds.loc["arm 1"].tolist() == seeds.loc["arm 2"].tolist()
    assert len(set(seeds.loc["arm 1"])) == 3


@pytest.mark.slow
def test_what_was_done_is_kept(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while the third proxy trains: the rest is trained, the verdict is the same to the byte."""

    class Killed(BaseException):
        pass

    given = [desk.good, desk.garbage], [desk.same]
    whole = desk.ablate(tmp_path / "whole", *given, seeds=2)
    trained: list[str] = []
    real = proxies.make_trainer

    def dying(*args, **kwargs):  # type: ignore[no-untyped-def]
        trainer = real(*args, **kwargs)
        trained.append(kwargs["workdir"].name)
        if len(trained) == 3:
            step = trainer._take_step

            def last_step():  # type: ignore[no-untyped-def]
                if trainer.step == 15:
                    raise Killed
                return step()

            trainer._take_step = last_step
        return trainer

    monkeypatch.setattr(proxies, "make_trainer", dying)
    with pytest.raises(Killed):
        desk.ablate(tmp_path / "w", *given, seeds=2, checkpoint_every_s=1e-9)
    assert trained == ["arm0-seed0", "arm1-seed0", "arm0-seed1"]
    again = desk.ablate(tmp_path / "w", *given, seeds=2, checkpoint_every_s=1e-9)
    assert trained[3:] == ["arm0-seed1", "arm1-seed1"]
    assert again.digest == whole.digest


@pytest.mark.slow
def test_how_many_train_at_once_changes_nothing(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [desk.good, desk.garbage], [desk.same]
    alone = desk.ablate(tmp_path / "one", *given, seeds=2)
    monkeypatch.setattr(workers, "cores", lambda: 2)
    assert desk.ablate(tmp_path / "two", *given, seeds=2).digest == alone.digest


@pytest.mark.slow
def test_a_process_that_dies_is_told(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "cores", lambda: 2)
    with pytest.raises(StepError, match="ended without a word"):
        desk.ablate(tmp_path / "w", [desk.good, desk.garbage], [desk.same], seeds=2, inject="kill@7")


@pytest.mark.slow
def test_several_arms_and_pairs(desk: Desk, tmp_path: Path) -> None:
    arms = [desk.good, desk.garbage, desk.tokens("more", sentences(160, seed=8))]
    verdict = desk.ablate(
        tmp_path / "w", arms, [desk.same], labels=["a", "b", "c"], baseline="b", pairs="all", points=1, seeds=2
    )
    said = json.loads(verdict.file("verdict.json").read_text())["comparisons"]
    assert [(one["before_name"], one["after_name"]) for one in said] == [("b", "a"), ("b", "c"), ("a", "c")]
    effect = Effect.load(verdict.path)
    assert effect is not None
    (arms_table, *_) = effect.blocks
    assert [row[0] for row in arms_table.rows] == ["a", "b", "c"]


def test_wrong_inputs_are_named(desk: Desk, tmp_path: Path) -> None:
    arms = [desk.good, desk.garbage]
    with pytest.raises(DataError, match="40 held-out documents of 'held-out 1' are in the training tokens of 'arm 2'"):
        desk.ablate(tmp_path / "a", [desk.good, desk.same], [desk.same])
    with pytest.raises(DataError, match="2 artifacts have 1 different labels"):
        desk.ablate(tmp_path / "b", arms, [desk.same], labels=["x", "x"])
    with pytest.raises(DataError, match="there is no arm 'goods'"):
        desk.ablate(tmp_path / "c", arms, [desk.same], labels=["good", "garbage"], baseline="goods")
    with pytest.raises(DataError, match="are of one cluster"):
        desk.ablate(tmp_path / "d", arms, [desk.tokens("one", sentences(9, seed=7), clusters=1)])
    other = tokens_of(desk.home, train_bpe(sentences(9, seed=1), 280), sentences(40, seed=5), "other")
    with pytest.raises(DataError, match="'other text' has 280 token ids"):
        desk.ablate(tmp_path / "o", arms, [other], heldout_labels=["other text"])
    with pytest.raises(DataError, match="one arm cannot be compared"):
        desk.ablate(tmp_path / "e", [desk.good], [desk.same])


def test_held_out_documents_come_from_clusters_in_turn() -> None:
    """One cluster is most of the text and has the longest document; it gives no more than its turns."""
    sizes = np.array([9000] + [100] * 50 + [100, 120, 5000] * 6)
    clusters = ["large"] * 51 + [f"small{at // 3}" for at in range(18)]
    ids = [str(at) for at in range(len(sizes))]
    documents = Documents(ids, clusters, np.cumsum(sizes) - sizes, sizes, sizes * 4)
    some = sample_evenly(documents, 2000, seed=1)
    assert some.tokens.sum() <= 2000
    counts = Counter(some.clusters)
    assert set(counts) == set(clusters)
    assert all(counts[f"small{at}"] == 2 for at in range(6))
    assert some.ids == sorted(some.ids, key=int)
    assert sample_evenly(documents, 2000, seed=2).ids != some.ids
    assert sample_evenly(documents, 10**6, seed=1).ids == ids


def test_points_are_even_and_end_at_the_end() -> None:
    assert points_of(100, 4) == [25, 50, 75, 100]
    assert points_of(2, 4) == [1, 2]
    assert points_of(1, 1) == [1]
    assert np.diff(points_of(97, 7)).max() <= 14
