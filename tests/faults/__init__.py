"""Proofs under faults: what holds while daemons are killed and PostgreSQL restarts."""
