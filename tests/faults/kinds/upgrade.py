"""A rolling upgrade while the load goes on: the next release's migration, then one daemon after the other."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg

from tests.faults.kinds.server import everyone
from tests.faults.lab import DATABASE, Kind, Lab, LabOptions, Strike, Violation, now
from tests.integration.next_migration import NEXT

__all__ = ["KINDS", "STAGES"]

_STAGE: Final = "upgradable"
# Another process, since a migration that is killed cannot be a part of this one.
_MIGRATE: Final = """
import sys, tempfile
from pathlib import Path
from sqlalchemy import create_engine
from tests.integration.next_migration import migrate_as_next_release
print("begins", flush=True)
with tempfile.TemporaryDirectory() as folder:
    migrate_as_next_release(create_engine(sys.argv[1]), Path(folder))
"""
# The chronicle keeps rows as they were before the upgrade: a column of the table's own row type would forbid the
# table's new column.
_DETACH: Final = """
CREATE TYPE lab.control AS ({columns});
ALTER TABLE lab.change
    ALTER COLUMN old TYPE lab.control USING CASE WHEN (old).run_id IS NOT NULL THEN ROW({old})::lab.control END,
    ALTER COLUMN new TYPE lab.control USING CASE WHEN (new).run_id IS NOT NULL THEN ROW({new})::lab.control END;
CREATE OR REPLACE FUNCTION lab.record_change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO lab.change (run_id, operation, old, new)
    VALUES (coalesce(NEW.run_id, OLD.run_id), TG_OP,
            CASE WHEN TG_OP <> 'INSERT' THEN ROW({trigger_old})::lab.control END,
            CASE WHEN TG_OP <> 'DELETE' THEN ROW({trigger_new})::lab.control END);
    RETURN NULL;
END $$;
"""
_COLUMNS: Final = """
SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
WHERE attrelid = 'public.flow_run_controls'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""


@contextmanager
def upgradable_stage(options: LabOptions) -> Iterator[Lab]:
    """The plain lab, with a chronicle that lets the table have a further column."""
    with Lab.open(options) as lab:
        with lab.admin() as admin, admin.transaction():
            admin.execute("LOCK TABLE flow_run_controls IN ACCESS EXCLUSIVE MODE")
            columns = admin.execute(_COLUMNS).fetchall()
            names = [name for name, _ in columns]
            admin.execute(
                _DETACH.format(
                    columns=", ".join(f"{name} {kind}" for name, kind in columns),
                    old=", ".join(f"(old).{name}" for name in names),
                    new=", ".join(f"(new).{name}" for name in names),
                    trigger_old=", ".join(f"OLD.{name}" for name in names),
                    trigger_new=", ".join(f"NEW.{name}" for name in names),
                )
            )
        yield lab


def _migration(lab: Lab) -> subprocess.Popen[str]:
    url = lab.server.sqlalchemy_url(DATABASE)
    argv = [sys.executable, "-c", _MIGRATE, url]
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=Path(__file__).parents[3]
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def _migrate(lab: Lab) -> None:
    process = _migration(lab)
    said, _ = process.communicate(timeout=60)
    if process.returncode:
        raise RuntimeError(f"the migration failed: {said[-400:]}")


def _version(admin: psycopg.Connection[Any]) -> str:
    row = admin.execute("SELECT version_num FROM curfew_schema_version").fetchone()
    assert row is not None
    return str(row[0])


def _undo(admin: psycopg.Connection[Any], version: str) -> None:
    """Back to this release's tables, so that the next strike has something to migrate."""
    admin.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_flow_run_controls_priority")
    admin.execute("SET lock_timeout = '5s'")
    admin.execute("ALTER TABLE flow_run_controls DROP COLUMN IF EXISTS priority")
    admin.execute("UPDATE curfew_schema_version SET version_num = %s", (version,))


def rolling_upgrade(lab: Lab, rng: random.Random) -> Strike:
    """Migrate, then replace every daemon in turn; deadlines are met on time throughout."""
    with lab.admin() as admin:
        version = _version(admin)
    began = now()
    _migrate(lab)
    replaced = []
    for daemon in lab.fleet.members:
        successor = lab.fleet.add()
        successor.wait_until_ready()
        daemon.stop()
        replaced.append(daemon)
        lab.fleet.forget(daemon, meant=daemon.exit_code == 0)
        lab.pause(rng.uniform(0, 0.3))
    ended = now()
    found = tuple(
        Violation("I14", f"{daemon.instance} ended with {daemon.exit_code} when it was replaced")
        for daemon in replaced
        if daemon.exit_code != 0
    )
    with lab.admin() as admin:
        _undo(admin, version)
    lame = frozenset(daemon.instance for daemon in replaced)
    did = f"migration to {NEXT} and {len(replaced)} daemons replaced"
    return Strike("F38", began, ended, did, lame=lame, found=found)


def killed_migration(lab: Lab, rng: random.Random) -> Strike:
    """The migration is killed somewhere, and run again: it ends where it should, and the load goes on meanwhile."""
    after = rng.uniform(0.0, 0.6)
    with lab.admin() as admin:
        version = _version(admin)
    began = now()
    process = _migration(lab)
    lab.pause(after)
    over = process.poll() is not None
    process.kill()
    process.communicate()
    _migrate(lab)
    ended = now()
    with lab.admin() as admin:
        row = admin.execute(
            "SELECT (SELECT version_num FROM curfew_schema_version), count(*) FILTER (WHERE indisvalid), count(*)"
            " FROM pg_index WHERE indexrelid = to_regclass('ix_flow_run_controls_priority')"
        ).fetchone()
        _undo(admin, version)
    found: tuple[Violation, ...] = ()
    if row != (NEXT, 1, 1):
        found = (Violation("I13", f"version, valid indexes and indexes after a repeated migration: {row}"),)
    did = f"migration killed after {after:.2f} s and repeated" if not over else "migration repeated"
    return Strike("F38", began, ended, did, lame=everyone(lab), found=found)


STAGES: Final = {_STAGE: upgradable_stage}
KINDS: Final = (
    Kind("F38", "rolling-upgrade", "a rolling upgrade", rolling_upgrade, heavy=True, alone=True, stage=_STAGE),
    Kind("F38", "killed-migration", "a migration killed", killed_migration, alone=True, stage=_STAGE),
)
