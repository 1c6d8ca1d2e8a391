"""The status page: what this daemon did in the last hour and what it last saw of the database.

Facts flow in from the daemon's threads (`Board`), are taken as one frozen record (`Facts`) when somebody asks,
and are rendered as HTML or JSON (`StatusPage`). Nothing here asks the database.
"""

from curfew_daemon.status.board import Board
from curfew_daemon.status.facts import Facts, Identity, TableFacts
from curfew_daemon.status.page import StatusPage

__all__ = ["Board", "Facts", "Identity", "StatusPage", "TableFacts"]
