"""Leases: who works on what right now. A lease has one holder, and ends by itself when its holder dies."""

from __future__ import annotations

from sqlalchemy import delete, select, update

from liuyi.core.database import Database
from liuyi.core.owner import is_alive
from liuyi.core.tables import LeaseRow

COLLECTION = "gc"
"""The lease of whoever removes artifacts; while it is held no run looks at what there is."""


class Leases:
    """The leases that a database holds; an owner is a name as `owner.this_process` gives it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def acquire(self, key: str, owner: str, ttl_s: float = 30.0) -> bool:
        """Take the lease on `key` for `owner`; True if `owner` holds it now.

        A lease is free if nobody holds it, if it was not renewed for its `ttl_s`, or if its owner was a process of
        this host that is dead.
        """
        with self._database.write() as session:
            now = self._database.now(session)
            holder = session.scalar(select(LeaseRow.owner).where(LeaseRow.key == key))
            dead = holder if holder and is_alive(holder) is False else owner
            free = LeaseRow.owner.in_([owner, dead]) | (LeaseRow.renewed + LeaseRow.ttl_s < now)
            values = {"key": key, "owner": owner, "renewed": now, "ttl_s": ttl_s}
            change = ("owner", "renewed", "ttl_s")
            return self._database.upsert(session, LeaseRow, values, change=change, where=free)

    def renew(self, key: str, owner: str) -> bool:
        """Say that `owner` is still at it; False if the lease is no longer its own."""
        with self._database.write() as session:
            mine = update(LeaseRow).where(LeaseRow.key == key, LeaseRow.owner == owner)
            renewed = mine.values(renewed=self._database.now(session)).returning(LeaseRow.key)
            return session.execute(renewed).first() is not None

    def release(self, key: str, owner: str) -> None:
        """Give a lease back; one that is no longer `owner`'s is left alone."""
        with self._database.write() as session:
            session.execute(delete(LeaseRow).where(LeaseRow.key == key, LeaseRow.owner == owner))

    def leases(self) -> dict[str, str]:
        """Key and owner of every lease that is held now."""
        with self._database.read() as session:
            now = self._database.now(session)
            rows = session.scalars(select(LeaseRow).where(LeaseRow.renewed + LeaseRow.ttl_s >= now)).all()
            return {row.key: row.owner for row in rows if is_alive(row.owner) is not False}
