"""The command line: ``curfewd run | once | check | migrate | plan | purge | demo``.

Each command reads the settings from the environment, does one thing, and ends with a documented code. What
only some commands need (Alembic, the HTTP server, rich) is imported in the command that needs it.
Longer than other modules by the options of the commands, whose help is what a user reads.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from importlib.metadata import version
from typing import Annotated, NoReturn

import durationpy
import typer

from curfew_daemon import events
from curfew_daemon.config import Connects, Settings, SettingsError
from curfew_daemon.environment import with_env_file
from curfew_daemon.lifecycle import Exit

EPILOG = (
    "Settings are environment variables that start with CURFEW_, or lines of the file that CURFEW_ENV_FILE names; "
    "the least is CURFEW_DATABASE_URL=postgresql://user:password@host/database. "
    "Exit codes: " + ", ".join(f"{code.value} {code.name.lower().replace('_', ' ')}" for code in Exit) + "."
)

app = typer.Typer(
    name="curfewd",
    help="Marks runs as timed out when their deadline has passed: once, and within milliseconds.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"curfewd {version('curfewd')}")
        raise typer.Exit


@app.callback()
def main(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Marks runs as timed out when their deadline has passed: once, and within milliseconds."""


@app.command(epilog=EPILOG)
def run() -> None:
    """Enforce deadlines until SIGTERM or SIGINT.

    Any number of these may run on one database. Survives every outage of it and says so in logs, metrics and
    /readyz; SIGHUP reads the settings again.
    """
    from curfew_daemon.app import Daemon  # noqa: PLC0415
    from curfew_daemon.http import BindFailed  # noqa: PLC0415

    settings = _settings()
    events.configure(settings.log_format, settings.log_level)
    daemon = Daemon(settings)
    try:
        code = daemon.run()
    except BindFailed as error:
        _fail(Exit.PORT_TAKEN, str(error))
    if sys.stderr is not None:  # started with standard error closed
        sys.stderr.flush()
    if daemon.abandoned:
        # A thread is still waiting for the database; the interpreter would wait for it in turn.
        os._exit(code)
    raise typer.Exit(code)


@app.command(epilog=EPILOG)
def once(
    wait: Annotated[
        str, typer.Option(help="How long to wait for overdue runs that somebody holds locked, as 10s or 2m.")
    ] = "10s",
) -> None:
    """Mark what is overdue now, and exit: for cron and for Kubernetes jobs."""
    from curfew_daemon.once import sweep_until_done  # noqa: PLC0415

    patience = _duration("--wait", wait)
    settings = _settings("database_url")
    with _database_errors():
        outcome = sweep_until_done(settings, patience.total_seconds())
    late = "" if outcome.lag_max is None else f", the latest {outcome.lag_max:,.3f} s after its deadline"
    waited = f"; waited {outcome.waited:.2f} s for runs that others held" if outcome.waited else ""
    typer.echo(f"marked {outcome.marked:,} runs in {outcome.duration:.2f} s{late}{waited}")
    if outcome.overdue_remains and outcome.refused:
        run_id, said = next(iter(outcome.refused.items()))
        _fail(Exit.FAILURE, f"the database refuses to mark {len(outcome.refused)} overdue runs, {run_id} first: {said}")
    if outcome.overdue_remains:
        _fail(Exit.FAILURE, "overdue runs remain that others hold locked: run `curfewd once` again, or see pg_locks")


@app.command(epilog=EPILOG)
def check() -> None:
    """Look for whatever could keep deadlines from being met, and say what to do about it.

    Settings, connection, schema, rights, timeouts, clock, orphaned keys and the plan of the claim. Changes
    nothing. Exits with 0 if there is nothing to do, warnings included, and otherwise with the code of the first
    error.
    """
    from curfew_daemon.check import Level, examine  # noqa: PLC0415

    settings = _settings()
    worst = Exit.OK
    for finding in examine(settings):
        typer.echo(f"{finding.level.value:<8} {finding.topic:<12} {finding.message}")
        if finding.remedy:
            typer.echo(f"{'':<21} -> {finding.remedy}")
        if finding.level is Level.ERROR and worst is Exit.OK:
            worst = finding.exit
    raise typer.Exit(worst)


@app.command(epilog=EPILOG)
def migrate(
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL instead of running it; needs no database.")] = False,
) -> None:
    """Create the tables, or adopt and update the ones that are there.

    Safe beside running producers and daemons, safe to repeat, safe to run twice at once. Waits for transactions that
    are older than a build of an index, and makes anew what a partial restore left out. Uses
    CURFEW_MIGRATION_DATABASE_URL where it is set: past a pooler, and as the owner of the tables.
    """
    from curfew_daemon.conninfo import has_migration_database_url, read_migration_database_url  # noqa: PLC0415
    from curfew_daemon.database import bounded_engine  # noqa: PLC0415
    from curfew_store.errors import MigrationError  # noqa: PLC0415
    from curfew_store.migrate import upgrade  # noqa: PLC0415

    if sql:
        typer.echo(_script(), nl=False)
        return
    settings = _settings("migration_database_url")
    with _database_errors("CURFEW_MIGRATION_DATABASE_URL" if has_migration_database_url(settings) else None):
        engine = bounded_engine(
            read_migration_database_url(settings),
            application_name=f"curfewd migrate {settings.instance}",
            connect_timeout=settings.connect_timeout,
            answer_timeout=float("inf"),  # an index is built for as long as it takes
        )
        try:
            before, after = upgrade(
                engine,
                schema=settings.schema_name,
                on_wait=lambda: typer.echo("waiting for another migration of this schema", err=True),
                tell=lambda line: typer.echo(line, err=True),
            )
        except MigrationError as error:
            _fail(Exit.FAILURE, str(error))
    where = f"schema {settings.schema_name}"
    if before == after:
        typer.echo(f"{where} is up to date at {after}")
    else:
        typer.echo(f"{where} migrated from {before or 'nothing of ours'} to {after}")


@app.command(epilog=EPILOG)
def plan(
    within: Annotated[
        str | None, typer.Option(help="Also count what falls due within this time from now, as 90s, 15m, 1h or 7d.")
    ] = None,
) -> None:
    """List what would be marked, per flow, and change nothing."""
    from curfew_daemon.plan import planned, render  # noqa: PLC0415

    reach = None if within is None else _duration("--within", within)
    settings = _settings("database_url")
    with _database_errors():
        for line in render(planned(settings, reach), within):
            typer.echo(line)


@app.command(epilog=EPILOG)
def purge(
    older_than: Annotated[
        str | None, typer.Option(help="How long to keep a run after its end, as 30d or 12h. Default: CURFEW_RETENTION.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how much would be deleted, and delete nothing.")
    ] = False,
) -> None:
    """Delete ended runs that are old, with their idempotency keys, and orphaned keys as old; then exit: for cron.

    The same key starts a run again afterwards. What has not ended is never deleted. Where CURFEW_RETENTION is set,
    `curfewd run` does this by itself. Uses CURFEW_PURGE_URL where it is set.
    """
    from curfew_daemon.conninfo import has_purge_url  # noqa: PLC0415
    from curfew_daemon.purge_once import TURN_WAIT, counted, purge_until_done  # noqa: PLC0415

    age = None if older_than is None else _duration("--older-than", older_than)
    settings = _settings("purge_url")
    if age is None:
        if settings.retention is None:
            raise typer.BadParameter("say how old, or set CURFEW_RETENTION", param_hint="--older-than")
        age = timedelta(seconds=settings.retention)
    with _database_errors("CURFEW_PURGE_URL" if has_purge_url(settings) else None, denied=_MAY_NOT_PURGE):
        if dry_run:
            runs, orphaned = counted(settings, age)
            typer.echo(f"would delete {runs:,} runs with their keys, and {orphaned:,} orphaned keys")
            return
        result = purge_until_done(settings, age, patience=TURN_WAIT)
    gone = result.deleted
    typer.echo(
        f"deleted {gone.runs:,} runs with {gone.keys:,} keys, and {gone.orphaned_keys:,} orphaned keys, "
        f"in {result.duration:.2f} s"
    )
    if result.outcome == "aside":
        _fail(
            Exit.FAILURE, f"another purge of these tables kept the turn for {TURN_WAIT:g} s: try again when it is done"
        )


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(min=3, max=3600, help="How long runs are started.")] = 20.0,
    rate: Annotated[float, typer.Option(min=1, max=500, help="Runs started per second.")] = 20.0,
    forever: Annotated[bool, typer.Option("--forever", help="Go on until Ctrl-C.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Plain lines instead of a live view.")] = False,
    database_url: Annotated[
        str | None, typer.Option(help="Use this server, in a schema of the demo's own, instead of starting one.")
    ] = None,
) -> None:
    """See it work: a real PostgreSQL, a real daemon, and runs that time out before your eyes."""
    from curfew_daemon.demo import Options, play  # noqa: PLC0415

    raise typer.Exit(play(Options(seconds=seconds, rate=rate, forever=forever, plain=plain, database_url=database_url)))


def _settings(only: Connects | None = None) -> Settings:
    """The settings; of a command that connects with *only* one of the URLs, without a demand for the others."""
    try:
        return Settings.load(only=only)
    except SettingsError as error:
        _refuse(error.problems)


def _refuse(problems: Sequence[str]) -> NoReturn:
    for problem in problems:
        typer.echo(f"curfewd: {problem}", err=True)
    raise typer.Exit(Exit.SETTINGS) from None


def _script() -> str:
    """The SQL of the migrations for the schema that is set. No other setting is read, since none is needed."""
    from curfew_store.errors import InvalidValue  # noqa: PLC0415
    from curfew_store.migrate import script  # noqa: PLC0415

    try:
        return script(schema=with_env_file(os.environ).get("CURFEW_SCHEMA") or "public")
    except SettingsError as error:
        _refuse(error.problems)
    except InvalidValue as error:
        _refuse([f"CURFEW_SCHEMA: {error.problem}"])


def _duration(option: str, text: str) -> timedelta:
    try:
        duration = durationpy.from_str(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no duration; write 90s, 15m, 1h or 1h30m", param_hint=option) from None
    if not timedelta(0) < duration <= timedelta(days=36_500):
        raise typer.BadParameter(f"{text!r} is not between 1us and 100 years", param_hint=option)
    return duration


def _fail(code: Exit, message: str) -> None:
    typer.echo(f"curfewd: {message}", err=True)
    raise typer.Exit(code)


_MAY_NOT_PURGE = "let CURFEW_PURGE_URL name a role that may delete (deploy/postgres/roles.sql makes one)"


@contextlib.contextmanager
def _database_errors(own_url: str | None = None, *, denied: str | None = None) -> Iterator[None]:
    """Ends the command with the code and the remedy of whatever the database said.

    *own_url* is the variable of the URL that the command uses, if that is not the database URL; *denied* the remedy
    where its role lacks a right, if that is not the one of the sweep.
    """
    from curfew_daemon.failures import REMEDIES, exit_of, is_database_error, shown, state_of  # noqa: PLC0415
    from curfew_daemon.results import DatabaseState  # noqa: PLC0415

    try:
        yield
    except Exception as error:
        if not is_database_error(error):
            raise
        state = state_of(error)
        remedy = denied if denied and state is DatabaseState.DENIED else REMEDIES.get(state)
        if remedy and own_url:
            remedy = remedy.replace("CURFEW_DATABASE_URL", own_url)
        _fail(exit_of(error), shown(error) + (f"\n         -> {remedy}" if remedy else ""))
