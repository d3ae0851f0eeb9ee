"""Holds on vLLM's scheduler: lanes on a CPU. Named by its path in `engines/vllm/engine.py`.

It runs in vLLM's own process.

On a GPU a prompt costs little beside the next tokens of the running turns. On a CPU each of
those costs as much as a token of the prompt, so an interactive turn gets its first token from
steps without the batch lane. No two steps in a row leave the batch lane out.
"""

from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler

READ_IN = {"vllm": "0.32.0"}
HOLDS = {
    "vllm.v1.core.sched.scheduler:Scheduler.__init__": "365b37fe5893",
    "vllm.v1.core.sched.scheduler:Scheduler.schedule": "86996b4510f0",
}


class LaneScheduler(Scheduler):  # type: ignore[misc]
    """Between two tokens of a turn, `prefill_tokens` of prompts are computed at most.

    Turns of the batch lane begin one at a time: what a step computes of their prompts, the next
    interactive turn waits for.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        # `engine.py` gives a step room for them and for one token of each turn.
        limits = self.scheduler_config
        self._prefill_tokens = int(limits.max_num_batched_tokens - limits.max_num_seqs)
        self._left_out_batch = False
        #: Prompt tokens of the last step, if it left the batch lane out.
        self._spent = 0

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        # Next tokens before prompts, and interactive turns' prompts before the others'.
        self.running.sort(key=lambda turn: (turn.is_prefill_chunk, turn.priority))
        batch = [turn for turn in self.running if turn.priority > 0]
        free = self.max_num_running_reqs - len(self.running)
        joining = min(free, sum(turn.priority == 0 for turn in self.waiting))
        is_due = joining > 0 or self._is_beginning()
        self._left_out_batch = bool(batch) and is_due and not self._left_out_batch
        if self._left_out_batch:
            for turn in batch:
                # `schedule` begins by counting `current_step` up.
                turn.next_decode_eligible_step = self.current_step + 2
        elif not any(turn.is_prefill_chunk for turn in batch):
            joining += 1
        self.max_num_active_reqs = min(self.max_num_running_reqs, len(self.running) + joining)
        self.max_num_scheduled_tokens = max(1, self._budget())
        output = super().schedule(throttle_prefills)
        counts = output.num_scheduled_tokens.values()
        self._spent = sum(count for count in counts if count > 1) if self._left_out_batch else 0
        return output

    def _is_beginning(self) -> bool:
        """A part of an interactive turn's prompt has been computed, and not all of it."""
        return any(turn.is_prefill_chunk and turn.priority == 0 for turn in self.running)

    def _budget(self) -> int:
        """Tokens of this step: the next one of each turn that takes part, and of prompts."""
        going_on = sum(
            not turn.is_prefill_chunk and not (self._left_out_batch and turn.priority > 0)
            for turn in self.running
        )
        return int(self._prefill_tokens - self._spent + going_on)
