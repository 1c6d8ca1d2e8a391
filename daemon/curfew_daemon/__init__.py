"""The daemon that marks overdue runs as timed out."""
