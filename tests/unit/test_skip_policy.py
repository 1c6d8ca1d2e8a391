"""The plugin that turns unlisted skips into failures, in a pytest run of its own."""

from __future__ import annotations

import pytest

SUITE = """
import pytest

def test_passes():
    pass

@pytest.mark.skip(reason="by a mark")
def test_marked():
    raise AssertionError

def test_in_the_body():
    pytest.skip("in the body")

@pytest.fixture
def unavailable():
    pytest.skip("in a fixture")

def test_in_a_fixture(unavailable):
    raise AssertionError

@pytest.mark.parametrize("value", [1, 2])
def test_parameter(value):
    pytest.skip("for a parameter")

@pytest.mark.xfail(reason="known", strict=True)
def test_expected_to_fail():
    raise AssertionError
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeini("[pytest]\nallowed_skips = allowed.toml\n")
    pytester.makepyfile(test_suite=SUITE)
    return pytester


def run(pytester: pytest.Pytester, *options: str) -> pytest.RunResult:
    return pytester.runpytest_inprocess(
        "-p", "tests.skip_policy", "-p", "no:cacheprovider", "-p", "no:asyncio", *options
    )


def test_unlisted_skips_fail(suite: pytest.Pytester) -> None:
    """A skip by mark, in the body or in a fixture fails the run and is named; expected failures stay."""
    result = run(suite)
    result.assert_outcomes(passed=1, failed=3, errors=2, xfailed=1)
    result.stdout.fnmatch_lines(["*SKIP NOT ALLOWED: test_suite.py::test_in_the_body: *in the body*"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_listed_skips_are_skips(suite: pytest.Pytester) -> None:
    """A skip that the file names, by pattern or by parameter, is left as it is; others still fail."""
    suite.path.joinpath("allowed.toml").write_text(
        '[[skip]]\ntest = "test_suite.py::test_in_*"\nreason = "r"\n'
        '[[skip]]\ntest = "test_suite.py::test_parameter[[]1]"\nreason = "r"\n'.replace("[[]", "[")
    )
    result = run(suite)
    result.assert_outcomes(passed=1, skipped=3, failed=1, errors=1, xfailed=1)


def test_a_module_that_skips_itself_fails(suite: pytest.Pytester) -> None:
    """A skip while collecting hides every test of a module: it fails too, unless it is listed."""
    suite.makepyfile(test_suite="import pytest\npytest.importorskip('curfew_no_such_module')")
    run(suite).assert_outcomes(errors=1)
    suite.path.joinpath("allowed.toml").write_text('[[skip]]\ntest = "test_suite.py"\nreason = "r"\n')
    run(suite).assert_outcomes(skipped=1)


@pytest.mark.parametrize("entry", ['test = "a"', 'test = "a"\nreason = " "', 'test = "a"\nresaon = "r"'])
def test_an_entry_without_a_reason_stops_the_run(suite: pytest.Pytester, entry: str) -> None:
    """Every entry says why; without a reason nothing runs."""
    suite.path.joinpath("allowed.toml").write_text(f"[[skip]]\n{entry}\n")
    result = run(suite)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*every ?[[]skip]] has a 'test' and a 'reason'*"])
