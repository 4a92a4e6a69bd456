"""`bitbudget down`: stop a stack that runs in the background."""

from __future__ import annotations

from cli.options import JsonOption, settings
from cli.output import print_json, say
from cli.stack.detached import stop_background


def down(as_json: JsonOption = False) -> None:
    """Stop the stack of ./var, wherever it was started.

    A running job is given back and goes on at the next start from what it has recorded.

    \b
    Example:
      bitbudget down
    """
    var_dir = settings().var_dir
    record = stop_background(var_dir, say)
    if as_json:
        print_json({"stopped": record is not None, "url": record.url if record else None})
    else:
        say(f"stopped {record.url}" if record else f"no stack of {var_dir} is running")
