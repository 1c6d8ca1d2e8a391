"""The migration of a release that does not exist yet, run as that release would run it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from sqlalchemy import Engine

from curfew_store import migrate

if TYPE_CHECKING:
    from alembic.config import Config

NEXT: Final = "0003"

_REVISION = Path(__file__).with_name("r0003_priority.py")


def migrate_as_next_release(engine: Engine, folder: Path, schema: str = "public") -> tuple[str | None, str]:
    """`upgrade` with the revisions of this release and the next one's; the versions before and after.

    *folder* is empty and takes a copy of the revisions. What runs in other processes stays this release.
    """
    scripts = shutil.copytree(Path(migrate.__file__).with_name("migrations"), folder / "migrations")
    shutil.copy(_REVISION, scripts / "versions")
    configured = migrate._config

    def config_of_next(schema: str) -> Config:
        config = configured(schema)
        config.set_main_option("script_location", str(scripts).replace("%", "%%"))
        return config

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(migrate, "_config", config_of_next)
        patched.setattr(migrate, "LATEST", NEXT)
        return migrate.upgrade(engine, schema=schema)
