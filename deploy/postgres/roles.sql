-- Roles for curfewd, each with the least that its calls need. For psql, as a superuser or as a role that has
-- CREATEROLE and owns the database:
--
--     psql -X -d app -v schema=public -f roles.sql
--
-- It may be run again at any time and ends in the same state: it takes back whatever these roles hold on curfewd's
-- tables before it grants, in one transaction, so nobody who is connected ever finds a right missing. Run it before
-- `curfewd migrate` (it makes the owner, and the schema where it is missing) and once more after it (the grants).
--
-- Variables, all optional: -v NAME=VALUE
--   database   where the tables are; default: the one that psql is connected to
--   schema     the schema of the tables; default: public
--   prefix     what the names of all roles begin with; default: curfew_. Roles belong to the whole server: two
--              databases whose services must not share rights take two prefixes
--   owner      the role that owns the tables; default: prefix || owner. On a database that FlowOrchestrator uses too,
--              the role that owns its tables and that both services are members of
--   logins     on: also make the example accounts at the end of this file
--
-- README.md beside this file says which call needs which right; tests derive that from what a server denies.

\set ON_ERROR_STOP on
\if :{?prefix}
\else
    \set prefix curfew_
\endif
\if :{?schema}
\else
    \set schema public
\endif
\if :{?owner}
\else
    \set owner :prefix owner
\endif
\if :{?logins}
\else
    \set logins off
\endif
\if :{?database}
    \connect :"database"
\else
    \set database :DBNAME
\endif
\set trigger :prefix trigger
\set worker :prefix worker
\set enforcer :prefix enforcer
\set reader :prefix reader
\set retention :prefix retention

-- Whoever runs this has many rights: no function or operator of somebody else's may be found by its name.
SET search_path = pg_catalog, pg_temp;
SET client_min_messages = warning;

BEGIN;

-- Group roles. They cannot log in; accounts become members, of several where one program does several things.
SELECT format('CREATE ROLE %I NOLOGIN', name)
FROM unnest(ARRAY[:'owner', :'trigger', :'worker', :'enforcer', :'reader', :'retention']) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name)
\gexec

-- Only a member of the owner may grant on its tables. A superuser is one without being told.
SELECT format('GRANT %I TO CURRENT_USER', :'owner') WHERE NOT pg_has_role(:'owner', 'USAGE')
\gexec

GRANT CONNECT ON DATABASE :"database" TO
    :"owner", :"trigger", :"worker", :"enforcer", :"reader", :"retention";

-- The schema. Nobody but the owner may create in it: a table called flow_runs would stop enforcement (the daemon takes
-- it for FlowOrchestrator's), and a function or an operator could stand in for PostgreSQL's own. PostgreSQL before 15
-- lets everybody create in public.
SELECT format('CREATE SCHEMA %I AUTHORIZATION %I', :'schema', :'owner')
WHERE NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = :'schema')
\gexec
REVOKE CREATE ON SCHEMA :"schema" FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA :"schema" TO :"owner";
GRANT USAGE ON SCHEMA :"schema" TO :"trigger", :"worker", :"enforcer", :"reader", :"retention";

SELECT count(*) = 3 AS migrated
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = :'schema'
    AND c.relname IN ('flow_run_controls', 'flow_idempotency_keys', 'curfew_schema_version')
\gset

\if :migrated
    -- Tables of another owner: its name is what -v owner= is for. Nothing has been changed then.
    SELECT format('DO %L', format('BEGIN RAISE EXCEPTION USING MESSAGE = %L, HINT = %L; END',
        format('table %I.%I belongs to %I, not to %I', n.nspname, c.relname, pg_get_userbyid(c.relowner), :'owner'),
        format('Run this with -v owner=%s, or give the tables to %I.', pg_get_userbyid(c.relowner), :'owner')))
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = :'schema'
        AND c.relname IN ('flow_run_controls', 'flow_idempotency_keys', 'curfew_schema_version')
        AND pg_get_userbyid(c.relowner) <> :'owner'
    LIMIT 1
    \gexec

    -- Taking a right back from a whole table takes it back from each column as well.
    REVOKE ALL ON :"schema".flow_run_controls, :"schema".flow_idempotency_keys, :"schema".curfew_schema_version
        FROM PUBLIC, :"trigger", :"worker", :"enforcer", :"reader", :"retention";

    -- Every call looks once whether the tables are the ones that it was written for.
    GRANT SELECT ON :"schema".curfew_schema_version
        TO :"trigger", :"worker", :"enforcer", :"reader", :"retention";

    -- A control record is read as a whole, also the columns that a later release will add.
    GRANT SELECT ON :"schema".flow_run_controls
        TO :"trigger", :"worker", :"enforcer", :"reader", :"retention";

    -- Trigger service: starts, configures, cancels, extends and reopens runs. It never names created_at_utc, so it
    -- cannot make a run or a key look older than it is, and an existing key stays as it is for ever.
    GRANT INSERT (run_id, flow_id, trigger_key, idempotency_key, timeout_at_utc)
        ON :"schema".flow_run_controls TO :"trigger";
    GRANT UPDATE (flow_id, trigger_key, idempotency_key, timeout_at_utc,
                  timed_out_at_utc, completed_at_utc, cancel_requested, cancel_reason, cancel_requested_at_utc)
        ON :"schema".flow_run_controls TO :"trigger";
    GRANT SELECT (flow_id, trigger_key, idempotency_key, run_id),
          INSERT (flow_id, trigger_key, idempotency_key, run_id)
        ON :"schema".flow_idempotency_keys TO :"trigger";

    -- Step worker: asks whether it may run (which marks a lapsed run), renews and completes. No row of its making, no
    -- change of what a run is, no sight of the keys' table.
    GRANT UPDATE (timeout_at_utc, completed_at_utc,
                  timed_out_at_utc, cancel_requested, cancel_reason, cancel_requested_at_utc)
        ON :"schema".flow_run_controls TO :"worker";

    -- Enforcer, the daemon: sets the four columns of a mark and nothing else; no deadline, no completion. Of the keys
    -- it sees, for `curfewd check`, which run they point to and since when, not what they are.
    GRANT UPDATE (timed_out_at_utc, cancel_requested, cancel_reason, cancel_requested_at_utc)
        ON :"schema".flow_run_controls TO :"enforcer";
    GRANT SELECT (run_id, created_at_utc) ON :"schema".flow_idempotency_keys TO :"enforcer";

    -- Reader: dashboards and people.
    GRANT SELECT ON :"schema".flow_idempotency_keys TO :"reader";

    -- Retention, for `curfewd purge` and CURFEW_PURGE_URL: the only one that deletes. It finds rows by their place in
    -- the table, which takes SELECT on all of it. It locks what it is about to delete, and locking takes UPDATE on some
    -- column: the one whose change does least.
    GRANT DELETE, UPDATE (created_at_utc)
        ON :"schema".flow_run_controls, :"schema".flow_idempotency_keys TO :"retention";
    GRANT SELECT ON :"schema".flow_idempotency_keys TO :"retention";
\endif

COMMIT;

\if :migrated
\else
    \warn 'The tables are not there yet: run `curfewd migrate` as a member of the owner, then this script again.'
\endif

-- Accounts, as an example to change. Settings belong to the account that logs in: it does not inherit those of the
-- groups it is in. They are made without passwords; set them with \password, never in a file.
\if :logins
    \set migrator :prefix migrator
    \set service :prefix service
    \set step :prefix step
    \set daemon :prefix daemon
    \set monitor :prefix monitor
    \set purger :prefix purger

    SELECT format('CREATE ROLE %I LOGIN', name)
    FROM unnest(ARRAY[:'migrator', :'service', :'step', :'daemon', :'monitor', :'purger']) AS name
    WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name)
    \gexec
    GRANT :"owner" TO :"migrator";
    GRANT :"trigger" TO :"service";
    GRANT :"worker" TO :"step";
    GRANT :"enforcer" TO :"daemon";
    GRANT :"reader" TO :"monitor";
    GRANT :"retention" TO :"purger";

    -- The migrator acts as the owner from the start, so that what it makes belongs to the owner and not to itself.
    SELECT format('ALTER ROLE %I IN DATABASE %I SET role = %L', :'migrator', :'database', :'owner')
    \gexec

    -- For all of them: names are looked up among PostgreSQL's own only (curfewd names the schema of its tables). A
    -- service with tables of its own adds their schema, if nobody else can create in it. Acknowledged is kept.
    SELECT format('ALTER ROLE %I IN DATABASE %I SET %s', name, :'database', setting)
    FROM unnest(ARRAY[:'migrator', :'service', :'step', :'daemon', :'monitor', :'purger']) AS name,
        unnest(ARRAY[
            'search_path = pg_catalog',
            'synchronous_commit = ''on''',
            'default_transaction_isolation = ''read committed'''
        ]) AS setting
    \gexec

    -- How long a statement may run, may wait for a lock, and a transaction may stand idle with its locks held. The
    -- daemon asks for the same by itself; a pooler that drops startup options leaves these in force. `migrate` sets
    -- its own: building an index takes as long as it takes.
    SELECT format('ALTER ROLE %I IN DATABASE %I SET %s = %L', name, :'database', setting, value)
    FROM (VALUES (:'service', '10s', '5s', '30s'),
                 (:'step', '10s', '5s', '30s'),
                 (:'daemon', '5s', '2s', '10s'),
                 (:'monitor', '60s', '2s', '60s'),
                 (:'purger', '60s', '2s', '30s')) AS bounds (name, statement, lock, idle),
        LATERAL (VALUES ('statement_timeout', statement), ('lock_timeout', lock),
                        ('idle_in_transaction_session_timeout', idle)) AS settings (setting, value)
    \gexec

    -- A belt beside the braces: whoever only reads, says so.
    SELECT format('ALTER ROLE %I IN DATABASE %I SET default_transaction_read_only = on', :'monitor', :'database')
    \gexec
\endif
