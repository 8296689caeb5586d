"""Statistics of paired evaluation: tests, intervals, power; clusters counted as what they are.

| question | function |
|---|---|
| did it change? | `compare` → `core.effect.Comparison`; `is_proven`, `is_worse` |
| is it no worse than a margin? the same within a margin? | `compare(margin=…)`, `tost` |
| how sure is one figure? | `estimate`; `wilson`, `clopper_pearson`; `bootstrap_interval` |
| several metrics at once | `holm`, `adjust` |
| what could be seen at all? | `mcnemar_power`, `mcnemar_detectable`, `detectable` |
"""

from liuyi.core.holm import holm
from liuyi.evaluate.stats.bootstrap import bootstrap_interval, bootstrap_tail, student_interval
from liuyi.evaluate.stats.clusters import ClusterSums, cluster_sums, effective_items, labels
from liuyi.evaluate.stats.compare import Interval, compare, estimate, is_proven, is_worse
from liuyi.evaluate.stats.equivalence import Equivalence, tost
from liuyi.evaluate.stats.multiple import adjust
from liuyi.evaluate.stats.paired import flip_sums, flip_whole_sums, mcnemar_exact, smallest_p
from liuyi.evaluate.stats.power import detectable, mcnemar_detectable, mcnemar_power
from liuyi.evaluate.stats.proportion import clopper_pearson, tango, wilson

__all__ = [
    "ClusterSums",
    "Equivalence",
    "Interval",
    "adjust",
    "bootstrap_interval",
    "bootstrap_tail",
    "clopper_pearson",
    "cluster_sums",
    "compare",
    "detectable",
    "effective_items",
    "estimate",
    "flip_sums",
    "flip_whole_sums",
    "holm",
    "is_proven",
    "is_worse",
    "labels",
    "mcnemar_detectable",
    "mcnemar_exact",
    "mcnemar_power",
    "smallest_p",
    "student_interval",
    "tango",
    "tost",
    "wilson",
]
