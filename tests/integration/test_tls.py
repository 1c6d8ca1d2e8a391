"""`curfewd check` warns where the way to the database can be listened to.

TLS itself is tested beside Debian's server, in tests/system/tls: the embedded one is built without it.
"""

from __future__ import annotations

import pytest

from curfew_daemon import check
from curfew_daemon.check import Finding, Level, examine
from tests.conftest import Database
from tests.integration.settings import settings_for


def about_tls(database: Database) -> list[Finding]:
    return [finding for finding in examine(settings_for(database.conninfo)) if finding.topic == "tls"]


@pytest.mark.parametrize(
    ("address", "encrypted", "levels"),
    [
        ("10.1.2.3", False, [Level.WARNING]),
        ("2001:db8::5", False, [Level.WARNING]),
        ("fe80::1%eth0", False, [Level.WARNING]),
        ("10.1.2.3", True, []),
        ("127.0.0.1", False, []),
        ("127.4.5.6", False, []),
        ("::1", False, []),
        ("", False, []),
    ],
)
def test_no_tls_to_another_host_is_a_warning(
    database: Database, monkeypatch: pytest.MonkeyPatch, address: str, encrypted: bool, levels: list[Level]
) -> None:
    """With the address and what to add to the URL; not on this machine, nor where it is encrypted."""
    monkeypatch.setattr(check, "_peer", lambda _conn: (address, encrypted))
    found = about_tls(database)
    assert [finding.level for finding in found] == levels
    assert all(address in finding.message and "sslmode=verify-full" in finding.remedy for finding in found)


def test_a_server_on_this_machine_needs_none(database: Database) -> None:
    """What the connection itself says, without anything put in its place."""
    assert about_tls(database) == []
