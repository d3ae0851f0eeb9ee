"""Every text that prints a command has a case that runs it, and every case has its text.

The cases are run by `tests/integration/printed/`.
"""

import re

from tests.integration.printed import doctor_states, error_states, hint_states
from tests.printed import CASES, ELSEWHERE, ROOT, is_known, sites

#: They register their cases.
STATES = (doctor_states, error_states, hint_states)


def test_every_text_that_prints_a_command_has_a_case() -> None:
    unknown = [site for site in sites() if not is_known(site)]
    assert unknown == [], "write a case in tests/integration/printed/ that runs the command"


def test_every_case_is_of_a_text_that_there_is() -> None:
    keys = {(file, part) for file, part, _ in CASES} | ELSEWHERE.keys()
    assert [
        key for key in sorted(keys)
        if not any(site.file == key[0] and key[1] in site.text for site in sites())
    ] == []  # fmt: skip


def test_the_tests_that_run_the_other_commands_exist() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = [where for where in ELSEWHERE.values() if re.fullmatch(r"test_\w+", where)]
    assert [name for name in named if f"def {name}(" not in sources] == []
