"""Measurements: how late deadlines are met, beside the usual alternative."""
