"""``curfewd demo``: a real PostgreSQL, a real daemon, and runs that time out before your eyes.

`play` does everything and leaves nothing behind: no process, no file, no schema.
"""

from curfew_daemon.demo.options import Options
from curfew_daemon.demo.play import play

__all__ = ["Options", "play"]
