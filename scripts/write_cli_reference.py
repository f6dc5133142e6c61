"""Write docs/cli.md from the help of every verb. With --check: say (exit code 1) if it is out of date, instead."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"

INTRO = """# The command line

<!-- Written by scripts/write_cli_reference.py from `machxc VERB --help`: change the help, then run it. -->

```
machxc train train.jsonl --output model --test test.jsonl     # learn, and say how well
machxc query model "a text"                                   # ask
machxc predict model texts.jsonl --output predictions.jsonl   # ask in bulk
```

What a verb finds out goes to standard output, everything else to standard error: progress (on a terminal only), notes,
warnings, errors. `--json` makes the result one JSON object a line, `--quiet` leaves warnings and errors only.

| exit code | |
|---|---|
| 0 | done |
| 1 | an error that should not happen; `--debug` shows where |
| 2 | what was given is wrong (data, settings, a model, an output that exists, a full disk): one line says what to do |
| 130 | interrupted; `train` goes on where it was when the same command is given again |
| 141 | nobody reads the output any more |

An output appears when it is complete, or not at all, and none is replaced without `--overwrite`.
"""


def reference() -> str:
    """The page."""
    os.environ.update(COLUMNS="100", NO_COLOR="1")
    from machxc.cli.parser import verb_parsers

    sections = (f"## {name}\n\n```\n{parser.format_help()}```\n" for name, parser in verb_parsers().items())
    return "\n".join((INTRO, *sections))


def main() -> int:
    """Write the page, or check it."""
    page = reference()
    if "--check" not in sys.argv:
        PAGE.write_text(page, encoding="utf-8")
        return 0
    written = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    if written.split() == page.split():  # where lines are broken depends on the version of Python
        return 0
    print(f"{PAGE} is out of date: run {Path(__file__).name}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
