"""One suite for the contract of the store, run over both façades on a real PostgreSQL."""
