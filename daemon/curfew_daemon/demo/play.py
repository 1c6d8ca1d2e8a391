"""The play itself: set the stage, let it run, judge what happened."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from importlib.metadata import version

import psycopg
import sqlalchemy.exc

from curfew_daemon.conninfo import redact, to_conninfo
from curfew_daemon.demo.daemon_process import DaemonProcess
from curfew_daemon.demo.interrupts import Interrupts
from curfew_daemon.demo.options import DemoFailed, Options
from curfew_daemon.demo.performance import Performance
from curfew_daemon.demo.plain import PlainShow
from curfew_daemon.demo.scene import Show, say, step
from curfew_daemon.demo.stage import Server, Stage, embedded_server, given_server
from curfew_daemon.failures import shown
from curfew_daemon.lifecycle import Exit
from curfew_store import CurfewError

__all__ = ["play"]


def play(options: Options) -> int:
    """Play the demo and return its exit code: 0 only if runs timed out and the promise was kept.

    Leaves no process, file or schema behind, however it ends. For the main thread of a process of its own.
    """
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal without Unicode
    interrupts = Interrupts()
    try:
        with interrupts:
            return _set_up_and_play(options, interrupts)
    except DemoFailed as error:
        sys.stderr.write(f"curfewd: {error}\n")
        return error.code
    except KeyboardInterrupt:
        sys.stderr.write("\ncurfewd: aborted; nothing is left behind\n")
        return 128 + interrupts.by
    except BrokenPipeError:
        # Nobody reads any more. What is still in the buffer must not fail again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILURE


def _set_up_and_play(options: Options, interrupts: Interrupts) -> int:
    say(f"curfewd {version('curfewd')} demo: a real PostgreSQL, a real daemon, and runs with deadlines")
    with _database_errors(options), contextlib.ExitStack() as cleanup:
        server = _server(options, cleanup)
        stage = _stage(server, cleanup)
        daemon = _daemon(stage, cleanup)
        show = _show(options)
        cleanup.callback(show.close)
        performance = Performance(stage, daemon, show, options, interrupts)
        summary = performance.to_the_end()
        show.close()
        show.summarise(summary)
    return Exit.OK if summary.verdict.passed else Exit.FAILURE


def _server(options: Options, cleanup: contextlib.ExitStack) -> Server:
    if options.database_url is not None:
        return cleanup.enter_context(given_server(options.database_url))
    with step("starting a PostgreSQL of its own"):
        return cleanup.enter_context(embedded_server())


def _stage(server: Server, cleanup: contextlib.ExitStack) -> Stage:
    with step("connecting") as done:
        stage = cleanup.enter_context(Stage(server))
        done.detail = f"PostgreSQL {stage.version}, schema {stage.schema}"
    with step("curfewd migrate") as done:
        done.detail = f"schema is at {stage.migrate()}"
    with step("installing the audit trigger (the demo's witness; the product has none)"):
        stage.install_audit()
    return stage


def _daemon(stage: Stage, cleanup: contextlib.ExitStack) -> DaemonProcess:
    with step("starting curfewd run") as done:
        daemon = DaemonProcess(stage.daemon_settings(), libpq=not stage.server.own)
        cleanup.callback(daemon.stop)
        daemon.wait_until_ready()
        done.detail = "it enforces"
    return daemon


def _show(options: Options) -> Show:
    if options.plain or not sys.stdout.isatty():
        return PlainShow()
    from curfew_daemon.demo.live import LiveShow, is_fit  # noqa: PLC0415 - rich is only for terminals

    return LiveShow() if is_fit() else PlainShow()


@contextlib.contextmanager
def _database_errors(options: Options) -> Iterator[None]:
    """Turns what the database says into `DemoFailed`, without a password in it."""
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, psycopg.Error, CurfewError) as error:
        said = shown(error)
        if options.database_url is not None:
            said = redact(said, to_conninfo(options.database_url))
        if getattr(getattr(error, "orig", error), "sqlstate", None) == "42501":
            said += "\nThe demo needs a role that may create a schema in this database."
        raise DemoFailed(f"the database said: {said}", Exit.DATABASE) from error
