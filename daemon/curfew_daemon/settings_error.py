"""The one error that a wrong configuration raises."""

from collections.abc import Iterable


class SettingsError(Exception):
    """The configuration cannot be used.

    `problems` holds one sentence per problem. Each names the environment variable to change; none quotes a
    secret or the contents of a file. The message is the problems, one per line.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))
