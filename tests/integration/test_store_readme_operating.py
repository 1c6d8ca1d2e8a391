"""The producer's guide: forked workers, rights, housekeeping, migrations and tests of a service's own."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import alembic.command
import alembic.config
import alembic.util.exc
import pytest
import sqlalchemy.exc
from sqlalchemy import MetaData, create_engine
from sqlalchemy.pool import NullPool

from curfew_store import (
    FlowRunControlStore,
    RunConfiguration,
    RunTimedOut,
)
from curfew_store.testing import Server
from tests.conftest import Database
from tests.integration import readme_snippets
from tests.integration.readme_snippets import KEYS, RUNS, Readme, claims

readme = readme_snippets.readme
HOUR = timedelta(hours=1)

FORKING = """
import importlib, os, sys
import service

def backend():
    with service.engine.connect() as connection:
        return connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()

service.dispatch = lambda run_id: None
service.trigger("from the parent")
if sys.argv[1] == "celery":
    importlib.import_module("tasks")
    from celery.signals import worker_process_init
    prepare = worker_process_init.send
elif sys.argv[1] == "gunicorn":
    prepare = lambda: importlib.import_module("gunicorn_conf").post_fork(None, None)
else:
    prepare = lambda: None
before = backend()
reading, writing = os.pipe()
child = os.fork()
if not child:
    prepare()
    service.trigger("from the child")
    os.write(writing, str(backend()).encode())
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
service.trigger("from the parent again")
print(before, int(os.read(reading, 20)), backend())
"""


CELERY_SIGNALS = """
class Signal:
    def __init__(self):
        self.receivers = []
    def connect(self, receiver):
        self.receivers.append(receiver)
        return receiver
    def send(self):
        for receiver in self.receivers:
            receiver(signal=self, sender=None)
worker_process_init = Signal()
"""


@claims("gunicorn", "celery")
def test_forked_workers_get_connections_of_their_own(readme: Readme, tmp_path: Path) -> None:
    """With either hook a forked child has its own connection and the parent keeps its own; without, they share one.

    Neither gunicorn nor Celery is installed for the tests: the hook is called as gunicorn would call it, and a
    module of the name ``celery.signals`` stands in for Celery's.
    """
    tmp_path.joinpath("service.py").write_text(readme.source("trigger"))
    tmp_path.joinpath("gunicorn_conf.py").write_text(readme.source("gunicorn"))
    tmp_path.joinpath("tasks.py").write_text(readme.source("celery"))
    tmp_path.joinpath("celery").mkdir()
    tmp_path.joinpath("celery", "__init__.py").touch()
    tmp_path.joinpath("celery", "signals.py").write_text(CELERY_SIGNALS)
    tmp_path.joinpath("forking.py").write_text(FORKING)
    for hook, shared in {"none": True, "gunicorn": False, "celery": False}.items():
        # The child drops its inherited connections without closing them, which is the point and worth a warning.
        command = [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "forking.py", hook]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        before, in_child, after = done.stdout.split()
        assert before == after
        assert (in_child == before) is shared, hook
    assert len(readme.sql(RUNS)) == 3


@claims("grants")
def test_the_grants_are_enough_and_purge_needs_more(readme: Readme, database: Database) -> None:
    """With the rights of the README a role can call every method but purge, and that one with DELETE."""
    role = f"curfew_readme_{uuid4().hex}"
    readme.sql(f"CREATE ROLE {role}")
    engine = create_engine(database.url, poolclass=NullPool, connect_args={"options": f"-c role={role}"})
    store, flow, run_id = FlowRunControlStore(engine), uuid4(), uuid4()
    try:
        for grant in readme.source("grants").replace("trigger_service", role).splitlines():
            readme.sql(grant)
        assert not store.start_run(flow, "order", "one", run_id=run_id, timeout=HOUR).duplicate
        store.configure_run(run_id, flow, "order", "one", timeout=HOUR)
        store.configure_runs([RunConfiguration(run_id, flow, "order", "one", timeout=HOUR)])
        assert store.heartbeat(run_id, timeout=2 * HOUR)
        assert store.try_register_idempotency_key(flow, "order", "two", run_id)
        assert store.find_run_id_by_idempotency_key(flow, "order", "one") == run_id
        assert store.request_cancel(run_id)
        assert store.reopen_run(run_id)
        assert store.mark_timed_out(run_id)
        assert store.extend_deadline(run_id, datetime(2020, 1, 1, tzinfo=UTC))
        with pytest.raises(RunTimedOut):
            store.ensure_may_run(run_id)
        assert store.extend_deadline(run_id, None)
        assert store.complete_run(run_id)
        with pytest.raises(sqlalchemy.exc.ProgrammingError, match="permission denied"):
            store.purge(datetime.now(UTC), limit=1)
        readme.sql(f"GRANT DELETE ON flow_run_controls, flow_idempotency_keys TO {role}")
        assert store.purge(datetime.now(UTC) + HOUR, limit=1) == 1
    finally:
        readme.sql(f"DROP OWNED BY {role}")
        readme.sql(f"DROP ROLE {role}")


@claims("purge")
def test_purging_spares_what_is_recent_or_live(readme: Readme) -> None:
    """Runs that ended 30 days ago go with their keys, more of them than one batch; all others stay."""
    readme.run("trigger")
    store: FlowRunControlStore = readme["store"]
    live, recent, old = (store.start_run(readme["FLOW"], "order", key).run_id for key in ("live", "recent", "old"))
    store.complete_run(recent)
    store.complete_run(old)
    readme.sql(
        "INSERT INTO flow_run_controls (run_id, completed_at_utc) "
        "SELECT gen_random_uuid(), now() - interval '31 days' FROM generate_series(1, 1500)"
    )
    readme.sql("UPDATE flow_run_controls SET completed_at_utc = now() - interval '31 days' WHERE run_id = :r", r=old)
    readme.run("purge")
    assert {*readme.sql(RUNS)} == {*readme.sql(KEYS)} == {(live,), (recent,)}


@claims("alembic")
def test_autogenerate_leaves_the_tables_alone(readme: Readme, tmp_path: Path) -> None:
    """With the hook, Alembic finds nothing to change in the service's database; without it, tables to drop."""
    environment = readme.source("trigger") + "from sqlalchemy import MetaData\n\nmetadata = MetaData()\n"
    environment += readme.source("alembic") + "\nengine.dispose()\n"
    config = alembic.config.Config()
    config.set_main_option("script_location", str(tmp_path))
    config.set_main_option("path_separator", "os")
    tmp_path.joinpath("versions").mkdir()
    tmp_path.joinpath("env.py").write_text(environment)
    alembic.command.check(config)
    tmp_path.joinpath("env.py").write_text(environment.replace(", include_object=include_object", ""))
    with pytest.raises(alembic.util.exc.AutogenerateDiffsDetected):
        alembic.command.check(config)
    assert MetaData().tables == {}


@claims("pytest")
def test_the_fixture_for_a_services_own_tests(readme: Readme, pytester: pytest.Pytester, server: Server) -> None:
    """The test in the README passes in a pytest run of its own, on a real store."""
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n")
    pytester.makepyfile(test_service=readme.source("pytest"))
    pytester.runpytest_subprocess(f"--curfew-database-url={server.url()}").assert_outcomes(passed=1)
