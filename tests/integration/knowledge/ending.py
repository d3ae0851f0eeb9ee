"""An indexer that stops for good at one step, so that a test can kill it there.

`python ending.py URL DATA STEP`: it says "there" once it has reached the step.
"""

import sys
import time
from typing import Any

from turnmill.schemas.files.opening import open_files
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import load_settings
from turnmill.schemas.store.knowledge import indexing
from turnmill.workers.upkeep import indexer

#: Where each step is: a module, the name of a function, and whether it has done its work by then.
STEPS = {
    "claimed": (indexer, "content_of", False),
    "reading": (indexer, "read_isolated", False),
    "read": (indexer, "settle", False),
    "locked": (indexing, "replace_passages", False),
    "replaced": (indexing, "replace_passages", True),
    "settled": (indexer, "settle", True),
}


def stop_at(step: str) -> None:
    module, name, is_after = STEPS[step]
    real = getattr(module, name)

    def stopping(*arguments: Any, **options: Any) -> Any:
        if is_after:
            real(*arguments, **options)
        sys.stdout.write("there\n")
        sys.stdout.flush()
        time.sleep(600)

    setattr(module, name, stopping)


def main(url: str, data: str, step: str) -> None:
    settings = load_settings(data=data, database={"url": url})
    database = Database(settings.database)
    stop_at(step)
    indexer.index_next(database, open_files(database, settings), lease_s=1.0)


if __name__ == "__main__":
    main(*sys.argv[1:])
