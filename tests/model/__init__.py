"""Models of the store and of the claim, and what compares them with a real PostgreSQL."""
