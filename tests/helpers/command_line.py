"""The command line in this process: what it answers and what it refuses."""

import json

from click.testing import CliRunner

from baracuda_kernels.cli import main


def invoke(*args):
    return CliRunner().invoke(main, [str(a) for a in args])


def ok(*args):
    result = invoke(*args)
    assert result.exit_code == 0, result.output
    return result


def refused(*args):
    """Type and message of the command's error, which must be the same as text and as JSON."""
    result = invoke(*args)
    assert result.exit_code == 2, result.output
    as_json = invoke(*args, "--json")
    assert as_json.exit_code == 2 and as_json.stdout == ""
    error = json.loads(as_json.stderr)["error"]
    assert error["message"] in result.stderr and "Traceback" not in result.stderr
    return error["type"], error["message"]
