"""The schema's revisions, run by Alembic; `curfew_store.migrate` is the way in."""
