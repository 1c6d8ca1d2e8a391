"""A real Prometheus on a free port of the loopback, in a temporary folder, with our rules and a hurried clock."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.patience import PATIENCE
from tests.system.prometheus import shipped

_PORT = re.compile(r'msg="Listening on" address=127\.0\.0\.1:(\d+)')
_READY = "Server is ready to receive web requests"


def hurried_rules(folder: Path) -> list[str]:
    """Copies of the shipped rules in which `for` is one second; expressions and their windows stay."""
    copies = []
    for path in shipped.RULE_FILES:
        content = shipped.load(path)
        for group in content["groups"]:
            for rule in group["rules"]:
                if "for" in rule:
                    rule["for"] = "1s"
        copy = folder / path.name
        copy.write_text(yaml.safe_dump(content), encoding="utf-8")
        copies.append(str(copy))
    return copies


class Prometheus:
    """Debian's Prometheus as a process; a context manager that leaves none behind.

    It scrapes *target* (``host:port``) as the job `curfewd` and evaluates the rules every second.
    """

    def __init__(self, folder: Path, target: str) -> None:
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": hurried_rules(folder),
            "scrape_configs": [{"job_name": "curfewd", "static_configs": [{"targets": [target]}]}],
        }
        path = folder / "prometheus.yml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        self._changed = threading.Condition()
        self._log = ""
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={path}",
                f"--storage.tsdb.path={folder / 'data'}",
                "--web.listen-address=127.0.0.1:0",
            ],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        try:
            self._wait_log(lambda log: _READY in log)
            self._wait_log(lambda log: _PORT.search(log) is not None)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant query; fails with what Prometheus says if it refuses."""
        answer = self._get("query", query=expression)
        assert answer["resultType"] == "vector", answer
        samples: list[dict[str, Any]] = answer["result"]
        return samples

    def query_range(self, expression: str, *, seconds: float) -> list[dict[str, Any]]:
        """The series of the last *seconds*, a point per second, as a panel asks for them."""
        now = time.time()
        answer = self._get("query_range", query=expression, start=str(now - seconds), end=str(now), step="1")
        series: list[dict[str, Any]] = answer["result"]
        return series

    def firing(self) -> dict[str, dict[str, str]]:
        """The annotations of the alerts that fire, by name."""
        alerts = self._get("alerts")["alerts"]
        return {each["labels"]["alertname"]: each["annotations"] for each in alerts if each["state"] == "firing"}

    def wait_until(self, said: str, condition: Callable[[], bool]) -> None:
        """Return once *condition* holds; asks a few times per evaluation."""
        give_up = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < give_up, f"never so: {said}; firing: {sorted(self.firing())}"
            time.sleep(0.2)

    def wait_firing(self, name: str) -> dict[str, str]:
        """The annotations of an alert, once it fires."""
        self.wait_until(f"{name} fires", lambda: name in self.firing())
        return self.firing()[name]

    def wait_resolved(self, name: str) -> None:
        """Return once an alert no longer fires."""
        self.wait_until(f"{name} resolves", lambda: name not in self.firing())

    def _get(self, endpoint: str, **parameters: str) -> Any:
        port = _PORT.search(self._log)
        assert port, self._log
        url = f"http://127.0.0.1:{port[1]}/api/v1/{endpoint}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as response:
            answer = json.load(response)
        assert answer["status"] == "success", answer
        assert "warnings" not in answer, answer
        return answer["data"]

    def _wait_log(self, condition: Callable[[str], bool]) -> None:
        give_up = time.monotonic() + PATIENCE
        with self._changed:
            while not condition(self._log):
                assert self._process.poll() is None, self._log
                assert time.monotonic() < give_up, self._log
                self._changed.wait(0.5)

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._changed:
                self._log += line
                self._changed.notify_all()
