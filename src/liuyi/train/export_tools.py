"""The tools that figures are exported to, each a `Tool` of `export.py`. They are extras, imported when they start."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence

from liuyi.train.export import External, Row, Tool

MLFLOW_PAGE = 1000
"""Metrics that one call of MLflow takes."""


class TensorBoard:
    """Event files in `folder/project/run`, read by `tensorboard --logdir folder`."""

    def __init__(self, run: External) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.id = run.id or run.name
        # What a process before this one wrote of steps from here on is passed over by TensorBoard.
        self.last = run.first - 1
        purged = {"purge_step": run.first} if run.id else {}
        self._writer = SummaryWriter(str(run.folder / run.project / self.id), **purged)
        if not run.id:
            listed = "\n".join(f"    {name}: {json.dumps(value)}" for name, value in run.params.items())
            self._writer.add_text("params", listed)

    def log(self, rows: Sequence[Row]) -> None:
        for step, values in rows:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self, *, failed: bool) -> None:
        self._writer.close()


class MLflow:
    """A run of the experiment `project`, at `$MLFLOW_TRACKING_URI` or where MLflow keeps runs on this machine."""

    def __init__(self, run: External) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param, RunStatus

        self._client = MlflowClient()
        self.last = -1
        found = self._client.get_experiment_by_name(run.project)
        experiment = found.experiment_id if found else self._client.create_experiment(run.project)
        self.id = run.id or self._begun(experiment, run.tags)
        if self.id:
            self._client.update_run(self.id, status=RunStatus.to_string(RunStatus.RUNNING))
            history = self._client.get_metric_history(self.id, "train/lr")
            self.last = max((metric.step for metric in history), default=-1)
        else:
            self.id = self._client.create_run(experiment, tags=dict(run.tags), run_name=run.name).info.run_id
        params = [Param(name, json.dumps(value)) for name, value in run.params.items()]
        if not run.id:
            self._client.log_batch(self.id, params=params)

    def _begun(self, experiment: str, tags: Mapping[str, str]) -> str:
        """The run that a process began which was killed before it could note its id; empty where there is none."""
        same = " and ".join(f"tags.{name} = '{value}'" for name, value in tags.items())
        found = self._client.search_runs([experiment], filter_string=same, max_results=1)
        return found[0].info.run_id if found else ""

    def log(self, rows: Sequence[Row]) -> None:
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for step, values in rows for name, value in values.items()]
        for at in range(0, len(metrics), MLFLOW_PAGE):
            self._client.log_batch(self.id, metrics=metrics[at : at + MLFLOW_PAGE])

    def finish(self, *, failed: bool) -> None:
        self._client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


class Trackio:
    """A run of trackio's `project`, in its own folder, or in the Space of `$TRACKIO_SPACE_ID`."""

    def __init__(self, run: External) -> None:
        import trackio

        self.id = run.id or run.name
        self.last = run.handed_over
        self._run = trackio.init(
            project=run.project,
            name=self.id,
            config={**run.params, **run.tags},
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, rows: Sequence[Row]) -> None:
        for step, values in rows:
            self._run.log(dict(values), step=step)

    def finish(self, *, failed: bool) -> None:
        self._run.finish()


class Wandb:
    """A run of Weights & Biases' `project`, by `$WANDB_API_KEY`, `$WANDB_ENTITY`, `$WANDB_MODE` and the like."""

    def __init__(self, run: External) -> None:
        import wandb

        self.id = run.id or run.name
        self.last = run.handed_over
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=self.id,
            resume="allow",
            config=dict(run.params),
            tags=[f"{name}:{value}"[:64] for name, value in run.tags.items()],
            settings=wandb.Settings(console="off", silent=True),
        )

    def log(self, rows: Sequence[Row]) -> None:
        for step, values in rows:
            self._run.log(dict(values), step=step)

    def finish(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


TOOLS: Mapping[str, Callable[[External], Tool]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "trackio": Trackio,
    "wandb": Wandb,
}
