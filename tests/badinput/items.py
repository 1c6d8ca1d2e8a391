"""The bad inputs that the project answers for, by number, and the tests that hold each.

``python -m tests.badinput.items`` writes the table of README.md from this list. A number is never given to another
input. The list is longer than most modules, being a list.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["ITEMS", "README", "Item", "page_with_table"]

TESTS: Final = Path(__file__).resolve().parents[1]
README: Final = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- items:begin -->", "<!-- items:end -->"

_ANY = "integration/contract/test_bad_input.py::test_bad_input_is_refused"
_CONTRACT = "integration/contract/test_"
_KEY = "integration/contract/test_idempotency_keys.py::"
_TEXT = f"{_KEY}test_any_other_text_is_a_key"
_MATRIX = "integration/contract/test_state_matrix.py::test_each_method_in_each_state"
_STORE = "badinput/test_store.py::"
_CONFIG = "unit/test_config.py::"
_CONNINFO = "unit/test_conninfo.py::"
_SETTINGS = "badinput/test_settings.py::"
_COMMANDS = "badinput/test_commands.py::"
_HTTP = "badinput/test_http.py::"
_PAGES = "unit/test_http.py::"
_REQUEST = f"{_HTTP}test_each_request_has_one_answer"
_RANGE = f"{_CONFIG}test_a_number_may_be_as_far_out_as_its_range"


@dataclass(frozen=True, slots=True)
class Item:
    """One bad input: what is given, what is to happen, and the *tests* (file under tests/, two colons, function)."""

    given: str
    outcome: str
    tests: tuple[str, ...]


def _item(given: str, outcome: str, *tests: str) -> Item:
    return Item(given, outcome, tests)


_REFUSED = "refused, nothing sent"
_A_KEY = "a key like any other"

_OF_THE_STORE = (
    _item("a run id that is no UUID", _REFUSED, _ANY),
    _item("the nil UUID as a run id", _REFUSED, _ANY, "unit/test_keys.py::test_ids_that_are_refused"),
    _item("`None` as an id", _REFUSED, _ANY),
    _item("bytes as an id", _REFUSED, _ANY),
    _item("a number as an id", _REFUSED, _ANY),
    _item(
        "a run id again, with the same values",
        "the same outcome",
        f"{_CONTRACT}transactions.py::test_every_method_may_be_repeated",
        f"{_CONTRACT}start.py::test_a_run_id_that_has_a_record",
    ),
    _item(
        "a run id again, with other values",
        "`start_run` refuses, `configure_run` overwrites its four fields",
        f"{_CONTRACT}start.py::test_a_run_id_that_has_a_record",
        _MATRIX,
    ),
    _item("an empty key", _REFUSED, _ANY),
    _item(
        "a key of blanks",
        f"{_REFUSED}; a blank trigger key is upstream's default",
        _ANY,
        f"{_KEY}test_a_blank_trigger_key_is_allowed",
    ),
    _item("a key of 256 characters", "accepted, whatever the bytes", f"{_KEY}test_a_key_may_have_256_characters"),
    _item("3,000 characters that do not compress", _REFUSED, f"{_STORE}test_a_key_that_cannot_be_compressed"),
    _item("3,000 characters that compress", _REFUSED, _ANY),
    _item("a key of 10 MB", _REFUSED, _ANY),
    _item("a NUL", _REFUSED, _ANY),
    _item("a lone surrogate", _REFUSED, _ANY),
    _item("composed and decomposed letters", "two keys", _TEXT),
    _item(
        "capitals, Turkish ones among them",
        "one key, by upstream's rule",
        f"{_KEY}test_keys_are_stored_in_the_normal_form",
        "unit/test_keys.py::test_edge_cases_of_the_normal_form",
    ),
    _item("right to left, zero width, emoji", _A_KEY, _TEXT),
    _item("line breaks and escape sequences", _A_KEY, _TEXT),
    _item("SQL", _A_KEY, _TEXT),
    _item("placeholders", _A_KEY, _TEXT),
    _item(
        "a key again, for another purpose",
        "a duplicate of the first run, nothing written",
        f"{_CONTRACT}start.py::test_a_taken_key_writes_nothing",
    ),
    _item("a key whose run was purged", "free", f"{_CONTRACT}purge.py::test_a_purged_key_is_free"),
    _item("a naive moment", _REFUSED, _ANY),
    _item("a moment in another zone", "the same instant", "unit/test_deadlines.py::test_moments_become_utc"),
    _item(
        "a moment in a gap or a fold of summer time",
        "the same instant",
        f"{_CONTRACT}times.py::test_a_moment_is_the_moment_it_is_in_utc",
    ),
    _item(
        "a moment in the past", "accepted, due at once", f"{_CONTRACT}deadline_changes.py::test_extend_takes_any_moment"
    ),
    _item(
        "this very moment",
        "due",
        "integration/test_claim.py::test_a_deadline_equal_to_now_is_due_and_one_microsecond_later_is_not",
    ),
    _item("the years 1 and 9999, also beyond them in UTC", _REFUSED, _ANY),
    _item(
        "infinite moments, written by others",
        "read as the first and last that Python has; the past one is due",
        f"{_CONTRACT}times.py::test_odd_times_of_others_can_be_read",
        f"{_CONTRACT}times.py::test_odd_deadlines_do_not_break_a_claim",
    ),
    _item("a timeout of nothing", _REFUSED, _ANY),
    _item("a negative timeout", _REFUSED, _ANY),
    _item("no number and infinity as a timeout", _REFUSED, _ANY),
    _item("1e308 as a timeout", _REFUSED, _ANY),
    _item("2 to the 63rd as a timeout", _REFUSED, _ANY),
    _item("a truth value as a timeout", _REFUSED, _ANY),
    _item("text as a timeout", _REFUSED, _ANY),
    _item("less than a microsecond", _REFUSED, f"{_STORE}test_less_than_a_microsecond_is_no_duration"),
    _item("the longest timedelta", _REFUSED, _ANY, "unit/test_deadlines.py::test_durations_that_are_refused"),
    _item("an earlier deadline", "accepted", f"{_CONTRACT}deadline_changes.py::test_extend_takes_any_moment"),
    _item("an extension by nothing", _REFUSED, f"{_STORE}test_an_extension_by_nothing"),
    _item("an extension of a run that ended, or of none", "by the state of the run, as the contract says", _MATRIX),
    _item("two extensions at once", "both hold in turn, the last stays", f"{_STORE}test_two_extensions_at_once"),
    _item("an extension of an overdue run that nobody marked", "accepted; it is not marked", _MATRIX),
    _item(
        "a cancel again, late, or of nothing",
        "`False`, nothing written",
        _MATRIX,
        f"{_CONTRACT}cancel_and_mark.py::test_the_first_cancel_stands",
    ),
    _item(
        "a reason that is empty, long or full of control characters",
        "kept to the letter up to 4,000 characters, refused beyond",
        f"{_STORE}test_a_reason_is_kept_to_the_letter",
        _ANY,
    ),
    _item(
        "a configuration of a run that timed out",
        "arms nothing",
        f"{_CONTRACT}configure.py::test_configure_arms_nothing_on_a_latched_run",
    ),
    _item("a run that nobody knows", "`None` or `False`, nothing made", f"{_STORE}test_a_run_that_nobody_knows"),
    _item(
        "a transaction that has already failed",
        "the server's error; usable after a rollback",
        f"{_CONTRACT}connections.py::test_a_transaction_that_has_already_failed",
    ),
    _item(
        "a connection in autocommit, at another level, in pipeline mode",
        "joined; joined; refused",
        f"{_CONTRACT}start.py::test_a_failed_record_takes_the_key_with_it",
        f"{_CONTRACT}transactions.py::test_a_lost_race_is_transient",
        f"{_STORE}test_a_connection_in_pipeline_mode_is_refused",
        f"{_STORE}test_an_asynchronous_connection_in_pipeline_mode_is_refused",
    ),
    _item(
        "a connection that is closed or broken",
        "an error that says whether a retry helps",
        f"{_CONTRACT}connections.py::test_a_closed_connection",
        f"{_CONTRACT}connections.py::test_a_lost_joined_connection",
    ),
    _item("one connection in several threads", "each its own answer", f"{_STORE}test_one_connection_in_many_threads"),
    _item(
        "a connection of the other façade",
        _REFUSED,
        "integration/contract/test_bad_input.py::test_a_connection_of_the_wrong_kind",
    ),
)

_OF_SETTINGS = (
    _item(
        "0, -1, no number, 1e9, `1s`, nothing as an interval",
        "named; nothing means the default",
        f"{_CONFIG}test_a_bad_duration_names_its_variable",
        f"{_CONFIG}test_an_empty_variable_is_not_set",
    ),
    _item("a batch of 0, -1 or too many", "named", _RANGE, f"{_SETTINGS}test_what_is_no_whole_number"),
    _item(
        "a port out of range, taken or forbidden",
        "named; a code of its own where it is taken",
        _RANGE,
        f"{_PAGES}test_a_taken_port_is_known_before_the_start",
        f"{_PAGES}test_a_refusal_by_the_system_is_explained",
        "e2e/test_run.py::test_the_port_taken_is_an_exit_code",
    ),
    _item(
        "a schema with quotes, too long, PostgreSQL's own, empty",
        "quoted; named; named; the default",
        f"{_CONFIG}test_any_name_that_postgresql_takes_is_a_schema",
        f"{_CONFIG}test_a_bad_value_says_what_is_expected",
        "unit/test_facades.py::test_schemas_that_are_refused",
        f"{_COMMANDS}test_the_script_of_an_impossible_schema",
        f"{_COMMANDS}test_the_script_is_for_the_schema_of_the_file_of_settings",
    ),
    _item(
        "database URLs of every form, and none",
        "libpq's meaning, or the reason without a piece of the password",
        f"{_CONNINFO}test_each_form_of_a_url_means_the_same_to_libpq",
        f"{_CONNINFO}test_an_unusable_url_says_what_is_wrong",
        f"{_CONNINFO}test_a_password_that_needs_quoting_is_not_repeated",
    ),
    _item(
        "a password on the command line",
        "refused and not repeated; the demo warns",
        f"{_SETTINGS}test_a_password_among_the_arguments_is_known",
        f"{_SETTINGS}test_what_holds_no_password_is_left_to_its_command",
        f"{_COMMANDS}test_a_password_on_the_command_line_is_refused_and_not_repeated",
        f"{_COMMANDS}test_the_demo_warns_of_a_password_on_its_command_line",
    ),
    _item(
        "a mistyped variable", "named, with the nearest", f"{_CONFIG}test_an_unknown_variable_names_the_nearest_setting"
    ),
    _item(
        "a setting given twice",
        "the environment before the file, of a file the last; a URL and its file are an error",
        "unit/test_env_file.py::test_the_file_is_beneath_the_environment",
        f"{_SETTINGS}test_of_a_setting_that_a_file_gives_twice_the_last_holds",
        f"{_SETTINGS}test_an_empty_variable_hides_nothing_of_the_file",
        f"{_CONFIG}test_a_url_and_its_file_exclude_each_other",
    ),
    _item(
        "a file that is missing, unreadable, a folder, a pipe, too large, of another encoding, a bomb",
        "named at once, its contents not shown",
        f"{_SETTINGS}test_a_pipe_as_the_file_of_settings_does_not_block",
        f"{_SETTINGS}test_a_file_of_settings_that_cannot_be_read",
        f"{_SETTINGS}test_a_file_of_settings_may_be_as_large_as_the_limit",
        f"{_SETTINGS}test_a_name_that_no_file_has",
        "unit/test_env_file.py::test_a_file_that_cannot_be_read_is_an_error_that_names_it",
        f"{_CONNINFO}test_what_is_no_file_is_refused_at_once",
        f"{_CONNINFO}test_an_unreadable_file_is_refused",
        f"{_CONNINFO}test_an_unusable_file_is_named_without_its_contents",
    ),
    _item("a watchdog shorter than the waits", "named", f"{_CONFIG}test_a_wait_that_looks_like_death_is_refused"),
    _item("a statement longer than the watchdog", "named", f"{_CONFIG}test_a_wait_that_looks_like_death_is_refused"),
    _item(
        "`--help`, `--version` and `check` without a database",
        "help and version need none; `check` says so",
        "e2e/test_cli.py::test_help_names_every_command_and_the_least_setting",
        "e2e/test_cli.py::test_the_version_can_be_asked_for_without_settings",
        "e2e/test_cli.py::test_no_database_is_exit_code_4",
    ),
    _item(
        "bad settings at a reload",
        "named; the old ones stay",
        "e2e/test_signals.py::test_a_reload_of_a_bad_file_keeps_the_old_settings",
        f"{_CONFIG}test_a_bad_reload_leaves_the_old_settings",
    ),
    _item(
        "no standard input, home, zone, locale or path",
        "no difference",
        f"{_COMMANDS}test_bare_surroundings_are_enough",
        "e2e/test_run.py::test_it_starts_and_stops_with_standard_error_closed",
    ),
)

_OF_THE_PAGES = (
    _item(
        "methods other than GET and HEAD",
        "405; 404 for a target that is no page",
        f"{_PAGES}test_other_methods_are_refused",
        _REQUEST,
    ),
    _item(
        "paths upwards, encoded, doubled, endless",
        "404 or 400, nothing of it in the answer",
        f"{_PAGES}test_nothing_of_a_request_comes_back",
        _REQUEST,
        f"{_HTTP}test_an_endless_head_is_cut_off",
    ),
    _item("HTTP/0.9, 2 and 9.9", "400, or 505", _REQUEST),
    _item(
        "headers too many, too long, missing, contradicting",
        "400; beyond 64 KiB the end",
        _REQUEST,
        f"{_HTTP}test_an_endless_head_is_cut_off",
        f"{_HTTP}test_what_follows_a_body_is_no_request",
    ),
    _item("bodies: on a GET, of a gigabyte, of garbage", "not read; the connection ends", _REQUEST),
    _item("a TLS hello", "400", _REQUEST, f"{_PAGES}test_nonsense_is_refused_in_silence"),
    _item(
        "clients that send or read slowly",
        "let go; others are served meanwhile",
        f"{_PAGES}test_clients_that_send_nothing_are_let_go",
        f"{_PAGES}test_hundreds_of_slow_clients_keep_no_scrape_out",
        f"{_HTTP}test_a_client_that_asks_and_does_not_read",
    ),
    _item("a storm of connections", "the next scrape is served", f"{_HTTP}test_a_storm_of_connections"),
    _item(
        "requests behind each other",
        "answered in order",
        f"{_HTTP}test_requests_behind_each_other_are_answered_in_order",
    ),
    _item(
        "IPv6, link-local and impossible addresses",
        "served, or named with the setting",
        f"{_PAGES}test_ipv6_is_served",
        f"{_HTTP}test_addresses_that_cannot_be_served",
    ),
    _item(
        "weights and encodings that are none",
        "plain text, not encoded",
        f"{_HTTP}test_what_is_no_quality",
        f"{_HTTP}test_no_answer_is_encoded",
    ),
)

ITEMS: Final[tuple[Item, ...]] = (*_OF_THE_STORE, *_OF_SETTINGS, *_OF_THE_PAGES)
"""Item 1 first."""


def page_with_table(page: str) -> str:
    """*page* with the table between its two marks written anew."""
    head, rest = page.split(BEGIN)
    _, tail = rest.split(END)
    lines = ["| | given | outcome | held by |", "|---|---|---|---|"]
    for number, item in enumerate(ITEMS, 1):
        held = "<br>".join(f"`{test}`" for test in item.tests)
        lines.append(f"| {number} | {item.given} | {item.outcome} | {held} |")
    return "\n".join((head + BEGIN, *lines, END + tail))


if __name__ == "__main__":
    README.write_text(page_with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
