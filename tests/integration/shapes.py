"""What a schema holds, as plain data to compare, and what a migrated one must hold."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, text

from curfew_store.version import LATEST

TIME = "timestamp with time zone"

UPSTREAM_CONTROLS = [
    ("run_id", "uuid", True, None),
    ("flow_id", "uuid", True, "'00000000-0000-0000-0000-000000000000'::uuid"),
    ("trigger_key", "character varying(256)", True, "''::character varying"),
    ("idempotency_key", "character varying(256)", False, None),
    ("timeout_at_utc", TIME, False, None),
    ("cancel_requested", "boolean", True, "false"),
    ("cancel_reason", "text", False, None),
    ("cancel_requested_at_utc", TIME, False, None),
    ("timed_out_at_utc", TIME, False, None),
]

ARMED = (
    "(timed_out_at_utc IS NULL) AND (completed_at_utc IS NULL) AND (NOT cancel_requested) "
    "AND (timeout_at_utc IS NOT NULL)"
)

MIGRATED: dict[str, Any] = {
    "columns": {
        "flow_run_controls": [
            *UPSTREAM_CONTROLS,
            ("created_at_utc", TIME, True, "now()"),
            ("completed_at_utc", TIME, False, None),
        ],
        "flow_idempotency_keys": [
            ("flow_id", "uuid", True, None),
            ("trigger_key", "character varying(256)", True, None),
            ("idempotency_key", "character varying(256)", True, None),
            ("run_id", "uuid", True, None),
            ("created_at_utc", TIME, True, "now()"),
        ],
    },
    "indexes": {
        "flow_run_controls_pkey": (True, True, "btree (run_id)"),
        "ix_flow_run_controls_armed": (
            True,
            False,
            f"btree (timeout_at_utc, run_id) WHERE ({ARMED})",
        ),
        "flow_idempotency_keys_pkey": (True, True, "btree (flow_id, trigger_key, idempotency_key)"),
        "ix_flow_idempotency_keys_run_id": (True, False, "btree (run_id)"),
    },
    # Only the primary keys: nothing that one odd old row could break.
    "constraints": {"flow_run_controls_pkey": "p", "flow_idempotency_keys_pkey": "p"},
    "triggers": [],
    "parameters": {
        "flow_run_controls": ["autovacuum_vacuum_scale_factor=0.01", "autovacuum_vacuum_threshold=1000"],
        "flow_idempotency_keys": None,
    },
    "versions": [(LATEST, 1)],
}

_TABLES = "('flow_run_controls', 'flow_idempotency_keys')"

_COLUMNS = f"""
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE n.nspname = :schema AND c.relname IN {_TABLES} AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY c.relname, a.attnum
"""

_INDEXES = f"""
SELECT x.relname, i.indisvalid, i.indisunique, pg_get_indexdef(i.indexrelid)
FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_class c ON c.oid = i.indrelid
JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = :schema AND c.relname IN {_TABLES}
"""

# Since PostgreSQL 18 NOT NULL is listed among the constraints; the columns tell of it already.
_CONSTRAINTS = f"""
SELECT k.conname, k.contype::text FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = :schema AND c.relname IN {_TABLES} AND k.contype <> 'n'
"""

_TRIGGERS = f"""
SELECT t.tgname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = :schema AND c.relname IN {_TABLES}
"""

_PARAMETERS = f"""
SELECT c.relname, c.reloptions FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = :schema AND c.relname IN {_TABLES}
"""

_CATALOGUE = """
SELECT 'class', c.oid::text, c.relname, c.xmin::text, c.relfilenode::text
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = :schema
UNION ALL
SELECT 'attribute', a.attrelid::text, a.attname, a.xmin::text, '' FROM pg_attribute a
JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = :schema
UNION ALL
SELECT 'index', i.indexrelid::text, '', i.xmin::text, '' FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = :schema
"""


def quoted(name: str) -> str:
    """An identifier in SQL."""
    return '"' + name.replace('"', '""') + '"'


def shape_of(engine: Engine, schema: str = "public") -> dict[str, Any]:
    """The shape of our tables in *schema*, to be compared with `MIGRATED`."""
    with engine.connect() as conn:

        def rows(sql: str) -> list[Any]:
            return [tuple(row) for row in conn.execute(text(sql.replace("::", "\\:\\:")), {"schema": schema})]

        columns: dict[str, list[Any]] = {}
        for table, *column in rows(_COLUMNS):
            columns.setdefault(table, []).append(tuple(column))
        version = f"{quoted(schema)}.curfew_schema_version".replace("%", "%%")
        return {
            "columns": columns,
            "indexes": {name: (ok, uniq, sql.split(" USING ")[1]) for name, ok, uniq, sql in rows(_INDEXES)},
            "constraints": dict(rows(_CONSTRAINTS)),
            "triggers": rows(_TRIGGERS),
            "parameters": dict(rows(_PARAMETERS)),
            "versions": [
                tuple(row) for row in conn.exec_driver_sql(f"SELECT version_num, minimum_client FROM {version}")
            ],
        }


def catalogue_of(engine: Engine, schema: str = "public") -> set[tuple[str, ...]]:
    """Everything that the catalogue says of *schema*, with the versions of its rows: equal means untouched."""
    with engine.connect() as conn:
        rows = conn.execute(text(_CATALOGUE.replace("::", "\\:\\:")), {"schema": schema})
        return {tuple(row) for row in rows}
