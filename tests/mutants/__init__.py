"""Tests that bite: mutants of the SQL and of the Python, each run against the tests of its module."""
