"""Which call needs which right, asked of the server: its answers are the README's table and the roles' grants.

For every call the smallest set of rights is found by taking away, one by one, what the call is not refused for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from curfew_store import FlowRunControlStore
from curfew_store.schema import CONTROLS, KEYS, VERSION_TABLE, tables_in
from curfew_store.testing import DatabaseTemplate
from tests.integration.calls_of_roles import CALLS, STORE_CALLS, Call, disconnect, is_allowed
from tests.integration.contract.rows import Rows
from tests.integration.deployed_roles import FOLDER, GROUPS, Deployment, deployed


@dataclass(frozen=True, order=True)
class Right:
    """One privilege on a table, or on one column of it."""

    table: str
    privilege: str
    column: str | None = None

    @property
    def grant(self) -> str:
        """As GRANT takes it."""
        return self.privilege if self.column is None else f"{self.privilege} ({self.column})"


COLUMNS = {table.name: list(table.columns.keys()) for table in (tables_in("public").controls, tables_in("public").keys)}
"""The columns of both tables."""


def _groups() -> Iterator[list[Right]]:
    """What is taken away together at first. In each the column that does least comes last, so it is kept if any is."""
    for table, columns in COLUMNS.items():
        for privilege in ("SELECT", "INSERT", "UPDATE"):
            whole = [Right(table, privilege)] if privilege == "SELECT" else []
            ordered = sorted(columns, key=lambda name: name == "created_at_utc")
            yield whole + [Right(table, privilege, column) for column in ordered]
        yield [Right(table, "DELETE")]


class Grantee:
    """A role that holds exactly the rights that it was last given."""

    def __init__(self, deployment: Deployment, admin: psycopg.Connection[object]) -> None:
        self._admin = admin
        self._role = deployment.role("grantee")
        self.conninfo = make_conninfo(deployment.admin, options=f"-c role={self._role}")
        admin.execute(f"CREATE ROLE {self._role}".encode())

    def holds(self, rights: Iterable[Right], *, usage: bool = True, version: bool = True) -> None:
        """Give it these rights, and no others."""
        tables = ", ".join((CONTROLS, KEYS, VERSION_TABLE))
        statements = [
            f"REVOKE ALL ON {tables} FROM {self._role}",
            f"{'GRANT' if usage else 'REVOKE'} USAGE ON SCHEMA public {'TO' if usage else 'FROM'} {self._role}",
            *([f"GRANT SELECT ON {VERSION_TABLE} TO {self._role}"] if version else []),
            *(f"GRANT {right.grant} ON {right.table} TO {self._role}" for right in rights),
        ]
        self._admin.execute(";".join(statements).encode())


def minimal_rights(call: Call, grantee: Grantee, rows: Rows) -> set[Right]:
    """The rights of which a call needs every one, beside those that every call needs."""
    held = {right for group in _groups() for right in group}

    def does_without(some: Iterable[Right]) -> bool:
        remaining = held.difference(some)
        grantee.holds(remaining)
        if allowed := is_allowed(call, grantee.conninfo, rows):
            held.intersection_update(remaining)
        return allowed

    assert does_without([]), "refused although it holds every right"
    for group in _groups():
        if does_without(group):
            continue
        if group[0].privilege == "SELECT" and not does_without(group[:1]):
            held.difference_update(group[1:])  # it asks for the whole table, not for each column
            continue
        for right in group:
            if right in held:
                does_without([right])
    return held


def described(rights: Iterable[Right], table: str) -> str:
    """The rights on one table as a cell of the README."""
    parts = []
    for privilege in ("SELECT", "INSERT", "UPDATE", "DELETE"):
        columns = {right.column for right in rights if (right.table, right.privilege) == (table, privilege)}
        if columns in ({None}, set(COLUMNS[table])):
            parts.append(privilege)
        elif columns:
            parts.append(f"{privilege} ({', '.join(name for name in COLUMNS[table] if name in columns)})")
    return "; ".join(parts)


def by_column(rights: Iterable[Right]) -> set[Right]:
    """The same rights, those on a whole table spelled out by column where that can be done."""
    return {
        Right(right.table, right.privilege, column)
        for right in rights
        for column in (COLUMNS[right.table] if right.column is None and right.privilege != "DELETE" else [right.column])
    }


@dataclass(frozen=True)
class Row:
    """A row of the README's table: who can make a call, for whom it is meant, what it takes on each table."""

    roles: frozenset[str]
    meant_for: frozenset[str]
    cells: tuple[str, str]


@functools.cache
def documented() -> dict[str, Row]:
    """The table of the README by call."""
    found = {}
    section = (FOLDER / "README.md").read_text(encoding="utf-8").partition("## Which call")[2]
    for line in section.splitlines():
        cells = [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 4:
            roles = cells[1].split(", ")
            meant_for = frozenset(role.strip("*") for role in roles if role.startswith("**"))
            found[cells[0]] = Row(frozenset(role.strip("*") for role in roles), meant_for, (cells[2], cells[3]))
    return found


@pytest.fixture(scope="module")
def deployment(curfew_database: DatabaseTemplate) -> Iterator[Deployment]:
    with deployed(curfew_database) as made:
        yield made
        disconnect()


@pytest.fixture(scope="module")
def rows(deployment: Deployment) -> Iterator[Rows]:
    seen = Rows(deployment.sqlalchemy_url)
    yield seen
    seen.close()


@pytest.fixture(scope="module")
def grantee(deployment: Deployment) -> Iterator[Grantee]:
    with psycopg.connect(deployment.admin, autocommit=True) as admin:
        made = Grantee(deployment, admin)
        # Everybody has USAGE on public; what a call needs of a schema shows only without that.
        admin.execute("REVOKE USAGE ON SCHEMA public FROM PUBLIC")
        yield made
        admin.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(deployment.role("grantee"))))
        admin.execute("GRANT USAGE ON SCHEMA public TO PUBLIC")


@pytest.fixture(scope="module")
def needs(grantee: Grantee, rows: Rows) -> Callable[[str], set[Right]]:
    """What a call needs, found out once."""
    return functools.cache(lambda name: minimal_rights(CALLS[name], grantee, rows))


def test_every_method_of_the_store_is_asked_about() -> None:
    """A new method fails here until its rights are known."""
    public = {name for name in vars(FlowRunControlStore) if not name.startswith("_")}
    assert set(STORE_CALLS) == public
    assert set(documented()) == set(CALLS)
    assert set(GROUPS) - {"owner"} == {role for row in documented().values() for role in row.roles}


@pytest.mark.parametrize("name", CALLS)
def test_readme_says_what_the_server_asks_for(name: str, needs: Callable[[str], set[Right]]) -> None:
    """The smallest set of rights with which a call is not refused is the one in the table."""
    found = tuple(described(needs(name), table) for table in (CONTROLS, KEYS))
    assert documented()[name].cells == found, " | ".join(found)


@pytest.mark.parametrize("name", CALLS)
def test_every_call_needs_the_schema_and_the_version(name: str, grantee: Grantee, rows: Rows) -> None:
    """With every right on both tables and without one of these two, each call is refused."""
    everything = [right for group in _groups() for right in group]
    grantee.holds(everything, version=False)
    assert not is_allowed(CALLS[name], grantee.conninfo, rows)
    grantee.holds(everything, usage=False)
    assert not is_allowed(CALLS[name], grantee.conninfo, rows)


@pytest.mark.parametrize("role", [each for each in GROUPS if each != "owner"])
@pytest.mark.parametrize("name", CALLS)
def test_each_role_can_make_its_calls_and_no_others(name: str, role: str, deployment: Deployment, rows: Rows) -> None:
    """Every call as every role of the script: allowed if the table names the role, else refused by the server."""
    conninfo = make_conninfo(deployment.admin, options=f"-c role={deployment.role(role)}")
    assert is_allowed(CALLS[name], conninfo, rows) is (role in documented()[name].roles)


@pytest.mark.parametrize("role", ["trigger", "worker", "enforcer", "retention"])
def test_no_role_holds_more_than_its_calls_need(
    role: str, deployment: Deployment, needs: Callable[[str], set[Right]], rows: Rows
) -> None:
    """What the script grants is the sum of the rights of the role's calls, to the column."""
    wanted = set().union(*(by_column(needs(name)) for name, row in documented().items() if role in row.meant_for))
    possible = by_column(right for group in _groups() for right in group)
    assert {right for right in possible if _holds(rows, deployment.role(role), right)} == wanted


def _holds(rows: Rows, role: str, right: Right) -> bool:
    if right.column is None:
        asked = "SELECT has_table_privilege(:role, :table, :privilege)"
    else:
        asked = "SELECT has_column_privilege(:role, :table, :column, :privilege)"
    found = rows.sql(asked, role=role, table=right.table, column=right.column, privilege=right.privilege)
    return bool(found[0][0])


def test_nobody_else_may_truncate_reference_or_hang_a_trigger_on_them(deployment: Deployment, rows: Rows) -> None:
    """The privileges that no call needs are the owner's alone."""
    held = [
        (role, table, privilege)
        for role in GROUPS
        for table in (CONTROLS, KEYS, VERSION_TABLE)
        for privilege in ("TRUNCATE", "REFERENCES", "TRIGGER")
        if _holds(rows, deployment.role(role), Right(table, privilege))
    ]
    assert {role for role, _, _ in held} == {"owner"}
    assert len(held) == 9
