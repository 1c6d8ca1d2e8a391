"""The roles of `deploy/postgres/roles.sql`, made by psql as an operator makes them, and gone after the test."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.pool import NullPool, Pool

from curfew_daemon.check import Level, examine
from curfew_daemon.once import sweep_until_done
from curfew_daemon.plan import planned
from curfew_store import FlowRunControlStore, RunTimedOut
from curfew_store import _postgres_binaries as binaries
from curfew_store.migrate import upgrade
from curfew_store.testing import DatabaseTemplate
from tests.integration.contract.rows import FLOW
from tests.integration.settings import settings_for

FOLDER = Path(__file__).parents[2] / "deploy" / "postgres"
SCRIPT = FOLDER / "roles.sql"
GROUPS = ("owner", "trigger", "worker", "enforcer", "reader", "retention")
ACCOUNTS: Mapping[str, str] = {
    "migrator": "owner",
    "service": "trigger",
    "step": "worker",
    "daemon": "enforcer",
    "monitor": "reader",
    "purger": "retention",
}
_PASSWORD = "for this test alone"


def psql(conninfo: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run psql; it comes with the server's own programs."""
    program = shutil.which("psql") or str(binaries.find_bin_dir(None) / "psql")
    command = [program, "-X", "-q", "-d", conninfo, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def run_script(conninfo: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `roles.sql` with these psql variables."""
    given = [word for name, value in variables.items() for word in ("-v", f"{name}={value}")]
    return psql(conninfo, *given, "-f", str(SCRIPT))


@dataclass(frozen=True)
class Deployment:
    """A database of its own with migrated tables in *schema* and with the roles and accounts of the script."""

    admin: str
    schema: str
    prefix: str

    def role(self, name: str) -> str:
        """The full name of a role or account."""
        return self.prefix + name

    def conninfo(self, account: str) -> str:
        """How an account logs in."""
        return make_conninfo(self.admin, user=self.role(account), password=_PASSWORD)

    @property
    def sqlalchemy_url(self) -> str:
        """The superuser's URL for SQLAlchemy."""
        url = make_url(self.admin).set(drivername="postgresql+psycopg")
        return url.render_as_string(hide_password=False)

    def engine(self, account: str) -> Engine:
        """An engine whose sessions an account has logged in to."""
        return engine_at(self.conninfo(account))

    def run_script(self, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the script once more, with these variables on top of the deployment's own."""
        own = {"schema": self.schema, "prefix": self.prefix, "logins": "on"}
        return run_script(self.admin, **{**own, **variables})


def engine_at(conninfo: str, pool: type[Pool] = NullPool) -> Engine:
    """An engine for what libpq takes; without another *pool* it keeps no connection."""
    return create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(conninfo), poolclass=pool, use_native_hstore=False
    )


@contextmanager
def deployed(template: DatabaseTemplate, schema: str = "public", prefix: str = "") -> Iterator[Deployment]:
    """Roles, `migrate` by the migrator, grants: the three steps of the README, on an empty database."""
    name = template.create(empty=True)
    deployment = Deployment(template.server.url(name), schema, prefix or f"{name}_")
    try:
        first = deployment.run_script()
        assert first.returncode == 0, first.stderr
        assert "curfewd migrate" in first.stderr
        set_passwords(deployment)
        upgrade(deployment.engine("migrator"), schema=schema)
        second = deployment.run_script()
        assert (second.returncode, second.stderr) == (0, "")
        yield deployment
    finally:
        drop_roles(deployment.admin, [deployment.role(each) for each in (*GROUPS, *ACCOUNTS)])
        template.drop(name)


def set_passwords(deployment: Deployment) -> None:
    """Let the accounts in, also on a server that asks for a password."""
    with psycopg.connect(deployment.admin, autocommit=True) as admin:
        for account in ACCOUNTS:
            name = sql.Identifier(deployment.role(account))
            admin.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(name, sql.Literal(_PASSWORD)))


def drop_roles(conninfo: str, names: Sequence[str]) -> None:
    """Drop the roles that exist, with what they own in this database."""
    with psycopg.connect(conninfo, autocommit=True) as admin:
        found = admin.execute("SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)", [list(names)]).fetchall()
        roles = sql.SQL(", ").join(sql.Identifier(name) for (name,) in found)
        if found:
            admin.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(roles))
            admin.execute(sql.SQL("DROP ROLE {}").format(roles))


def lifecycle(deployment: Deployment) -> None:
    """A run from start to mark, a completed one, a purge: each call by the account that it is for."""
    stores = {
        account: FlowRunControlStore(deployment.engine(account), schema=deployment.schema)
        for account in ("service", "step", "monitor", "purger")
    }
    run = _overdue(stores["service"])
    other = stores["service"].start_run(FLOW, "t", uuid4().hex).run_id
    settings = settings_for(deployment.conninfo("daemon"), CURFEW_SCHEMA=deployment.schema)
    found = [each for each in examine(settings) if each.level is not Level.OK]
    assert found == []
    assert [flow.overdue for flow in planned(settings, None)[0]] == [1]
    assert sweep_until_done(settings, patience=0).marked == 1
    with pytest.raises(RunTimedOut):
        stores["step"].ensure_may_run(run)
    assert stores["step"].complete_run(other)
    record = stores["monitor"].get_run_control(other)
    assert record is not None
    assert record.completed_at_utc is not None
    stores["purger"].purge(record.created_at_utc, limit=10)


def _overdue(store: FlowRunControlStore) -> UUID:
    run = store.start_run(FLOW, "t", uuid4().hex).run_id
    record = store.get_run_control(run)
    assert record is not None
    assert store.extend_deadline(run, record.created_at_utc)
    return run
