"""Faults of who may come in: roles locked, renamed or read-only, passwords rotated, certificates that expired."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql

from curfew_store.embedded import EmbeddedPostgres
from tests.faults.kinds.server import everyone
from tests.faults.lab import DATABASE, SECRET, Kind, Lab, LabOptions, Strike, Violation, now, server_settings
from tests.system.tls.certificates import OUTDATED, Certificate, new_authority, signed

__all__ = ["KINDS", "STAGES"]

_DEBIAN: Final = Path("/usr/lib/postgresql")
_HOST: Final = "db.curfew.example"
_TERMINATE: Final = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE 'lab\\_daemon%'"
_STAGE: Final = "secrets"

Do = Callable[[psycopg.Connection[Any]], object]


def _shut_out(lab: Lab, rng: random.Random, code: str, did: str, shut: Do, open_again: Do) -> Strike:
    """No daemon gets in, or none may write, for a while; none of them ends, and none sweeps meanwhile."""
    lab.pause(rng.uniform(0, 0.3))
    lasts = rng.uniform(0.5, 4.0)
    with lab.admin() as admin:
        began = now()
        try:
            shut(admin)
            admin.execute(_TERMINATE)
            lab.pause(lasts)
        finally:
            open_again(admin)
        ended = now()
    found = tuple(
        Violation("I14", f"{daemon.instance} ended with {daemon.exit_code}: {did}")
        for daemon in lab.fleet.members
        if daemon.exit_code is not None
    )
    return Strike(code, began, ended, f"{did} for {lasts:.1f} s", outage=True, lame=everyone(lab), found=found)


def locked_role(lab: Lab, rng: random.Random) -> Strike:
    """The daemons' role may not log in."""
    return _shut_out(
        lab,
        rng,
        "F32",
        "role may not log in",
        lambda admin: admin.execute("ALTER ROLE lab_daemon NOLOGIN"),
        lambda admin: admin.execute("ALTER ROLE lab_daemon LOGIN"),
    )


def missing_role(lab: Lab, rng: random.Random) -> Strike:
    """There is no role of that name: renamed, so that it comes back with what it may do."""
    return _shut_out(
        lab,
        rng,
        "F32",
        "role is gone",
        lambda admin: admin.execute("ALTER ROLE lab_daemon RENAME TO lab_daemon_gone"),
        lambda admin: admin.execute("ALTER ROLE lab_daemon_gone RENAME TO lab_daemon"),
    )


def revoked_grants(lab: Lab, rng: random.Random) -> Strike:
    """The daemons' role may no longer write the table."""
    return _shut_out(
        lab,
        rng,
        "F32",
        "grants revoked",
        lambda admin: admin.execute("REVOKE UPDATE ON flow_run_controls FROM lab_daemon"),
        lambda admin: admin.execute("GRANT UPDATE ON flow_run_controls TO lab_daemon"),
    )


def read_only(lab: Lab, rng: random.Random) -> Strike:
    """Transactions of the daemons' role are read-only, as after a failover gone wrong."""
    return _shut_out(
        lab,
        rng,
        "F18",
        "read-only",
        lambda admin: admin.execute("ALTER ROLE lab_daemon SET default_transaction_read_only = on"),
        lambda admin: admin.execute("ALTER ROLE lab_daemon RESET default_transaction_read_only"),
    )


def wrong_password(lab: Lab, rng: random.Random) -> Strike:
    """The server begins to ask for a password, first another than the daemons have, then theirs."""
    hba = lab.server.data_dir / "pg_hba.conf"
    trusting = hba.read_text()

    def shut(admin: psycopg.Connection[Any]) -> None:
        _set_password(admin, "another")
        hba.write_text(f"host all lab_daemon 127.0.0.1/32 scram-sha-256\n{trusting}")
        admin.execute("SELECT pg_reload_conf()")

    def open_again(admin: psycopg.Connection[Any]) -> None:
        _set_password(admin, SECRET)
        lab.pause(rng.uniform(0.5, 1.5))  # let in by the password, not by trust
        hba.write_text(trusting)
        admin.execute("SELECT pg_reload_conf()")

    return _shut_out(lab, rng, "F32", "another password", shut, open_again)


def _set_password(admin: psycopg.Connection[Any], password: str) -> None:
    admin.execute(sql.SQL("ALTER ROLE lab_daemon PASSWORD {}").format(sql.Literal(password)))


# With TLS, a password, and a URL in a file


class _Secrets:
    """What the daemons of the stage are told, and what the server presents."""

    def __init__(self, folder: Path, server: EmbeddedPostgres) -> None:
        authority = new_authority(folder / "authority")
        self._server = server
        self._authority = authority.certificate
        self.good = signed(authority, _HOST)
        renamed = folder / "expired"
        expired = signed(new_authority(renamed), _HOST, OUTDATED)
        self.expired = expired
        self.file = folder / "url"

    def tell(self, password: str) -> None:
        """Put the URL with this password into the daemons' file, whole or not at all."""
        url = (
            f"host={_HOST} hostaddr=127.0.0.1 port={self._server.port} user=lab_daemon dbname={DATABASE} "
            f"password='{password}' sslmode=verify-full sslrootcert={self._authority}"
        )
        beside = self.file.with_suffix(".new")
        beside.write_text(url)
        beside.replace(self.file)

    def present(self, certificate: Certificate) -> None:
        """Let the server use this certificate for every connection that is made once it has read it."""
        for source, name in ((certificate.certificate, "server.crt"), (certificate.key, "server.key")):
            target = self._server.data_dir / name
            beside = target.with_suffix(".new")
            shutil.copyfile(source, beside)
            owner = self._server.data_dir.stat()
            shutil.chown(beside, owner.st_uid, owner.st_gid)
            beside.chmod(0o600)
            beside.replace(target)


_SECRETS: Final[dict[int, _Secrets]] = {}
"""Those of each open stage, by the server's port."""


@contextmanager
def secrets_stage(options: LabOptions) -> Iterator[Lab]:
    """A lab whose daemons verify the server's certificate, give a password, and read both from a file."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="curfew-lab-secrets-")))
        programs = max(_DEBIAN.glob("*/bin"), key=lambda path: int(path.parent.name))
        server = stack.enter_context(
            EmbeddedPostgres.start(bin_dir=programs, durable=True, tcp=True, settings=server_settings(options))
        )
        secrets = _SECRETS[server.port] = _Secrets(folder, server)
        stack.callback(_SECRETS.pop, server.port)
        secrets.present(secrets.good)
        secrets.tell(SECRET)
        hba = server.data_dir / "pg_hba.conf"
        trusting = hba.read_text()
        with psycopg.connect(server.url(DATABASE), autocommit=True) as admin:
            admin.execute("ALTER SYSTEM SET ssl = on")
            admin.execute("SELECT pg_reload_conf()")
        own = {"CURFEW_DATABASE_URL": "", "CURFEW_DATABASE_URL_FILE": str(secrets.file)}
        lab = stack.enter_context(Lab.open(replace(options, settings={**options.settings, **own}), server))
        with lab.admin() as admin:  # the role has come with the lab; only now can it have a password
            _set_password(admin, SECRET)
            hba.write_text(f"hostssl all lab_daemon 127.0.0.1/32 scram-sha-256\n{trusting}")
            admin.execute("SELECT pg_reload_conf()")
        yield lab


def rotated_password(lab: Lab, rng: random.Random) -> Strike:
    """The password changes, and the daemons' file later: they come back by themselves, without a restart."""
    secrets = _SECRETS[lab.server.port]
    fresh = f"{SECRET}-{rng.getrandbits(32)}"
    return _shut_out(
        lab,
        rng,
        "F32",
        "password rotated, file behind",
        lambda admin: _set_password(admin, fresh),
        lambda admin: secrets.tell(fresh),
    )


def expired_certificate(lab: Lab, rng: random.Random) -> Strike:
    """The server presents a certificate that has expired; nobody talks to it until it has a good one again."""
    secrets = _SECRETS[lab.server.port]

    def present(certificate: Certificate) -> Do:
        def do(admin: psycopg.Connection[Any]) -> None:
            secrets.present(certificate)
            admin.execute("SELECT pg_reload_conf()")
            lab.pause(0.3)

        return do

    return _shut_out(lab, rng, "F32", "certificate expired", present(secrets.expired), present(secrets.good))


_NEEDS: Final = frozenset({"debian-postgres", "openssl"})
STAGES: Final = {_STAGE: secrets_stage}
KINDS: Final = (
    Kind("F18", "read-only", "a read-only database", read_only, alone=True),
    Kind("F32", "locked-role", "a role that may not log in", locked_role, alone=True),
    Kind("F32", "missing-role", "a role dropped", missing_role, alone=True),
    Kind("F32", "revoked-grants", "grants revoked", revoked_grants, alone=True),
    Kind("F32", "wrong-password", "another password", wrong_password, alone=True),
    Kind("F32", "rotated-password", "a password rotated", rotated_password, _NEEDS, alone=True, stage=_STAGE),
    Kind("F32", "expired-certificate", "a certificate expired", expired_certificate, _NEEDS, alone=True, stage=_STAGE),
)
