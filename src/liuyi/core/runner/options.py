"""What a run was started with beside its recipe; kept in the run's folder so that it can be resumed."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from liuyi.core.disk import full_disk_is_told
from liuyi.core.errors import LedgerError

FILE_NAME = "run.json"
WORKER_LOG = "_worker.log"
"""The worker's own log in the run's folder; no step can have this name."""


class RunOptions(BaseModel):
    """`folder` is where the steps run and where paths of own data start; `until` is the last step that is wanted."""

    model_config = ConfigDict(frozen=True)
    folder: Path
    until: str | None = None

    def save(self, run_dir: Path) -> None:
        """Write them into the run's folder."""
        with full_disk_is_told("starting a run", run_dir):
            (run_dir / FILE_NAME).write_text(self.model_dump_json(), encoding="utf-8")

    @classmethod
    def load(cls, run_dir: Path) -> RunOptions:
        """Read them back. Raises LedgerError if this machine does not have the run's folder."""
        try:
            return cls.model_validate_json((run_dir / FILE_NAME).read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            hint = "a run is resumed on the machine, and with the home, where it was started"
            raise LedgerError("the run's folder is not complete", where=str(run_dir), hint=hint) from None
