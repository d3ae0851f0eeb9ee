"""A bot on a channel that does not know hands its thread over, and says so once."""

from collections.abc import Callable, Iterator

import pytest

from tests.conversing import Replica
from tests.integration.knowledge.conftest import Library
from turnmill.producer.tenants import save_bot
from turnmill.schemas.channels.policies import Policies
from turnmill.schemas.channels.unknown import Step, UnknownPolicy
from turnmill.schemas.turns import GenerationParams
from turnmill.workers.testing import InlineWorker


@pytest.fixture
def replica(database_url: str) -> Iterator[Replica]:
    replica = Replica(database_url)
    yield replica
    replica.database.close()


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("Who won the world cup in 1954?", "I cannot answer this. I have asked a person"),
        ("明天上海会下雨吗？", "这个问题我回答不了，已经请人工接手"),
    ],
)
def test_the_thread_receives_the_hand_off_once_and_in_its_script(
    replica: Replica, library: Library, eventually: Callable[..., None], question: str, said: str
) -> None:
    library.write("returns.md", "A kettle that leaks may be sent back within 30 days.")
    library.sync()
    policies = Policies(knowledge="shop", unknown=UnknownPolicy(steps=(Step.HAND_OFF,)))
    place = (replica.database, replica.tenant_id, replica.bot, replica.bot)
    save_bot(*place, "", GenerationParams(), policies=policies)
    with InlineWorker(replica.settings):
        replica.say(question, double_texting="enqueue")
        eventually(lambda: replica.notices())
    (notice,) = replica.notices()
    assert notice.startswith(said)
    states = replica.rows("SELECT kind, state FROM deliveries ORDER BY kind")
    assert [(row.kind, row.state) for row in states] == [("notice", "queued"), ("reply", "dropped")]
    [turn] = replica.rows("SELECT state FROM turns")
    assert turn.state == "completed"
