"""Holds on vLLM's asynchronous front end."""

from vllm.v1.engine.async_llm import AsyncLLM

READ_IN = {"vllm": "0.32.0"}
HOLDS = {
    "vllm.v1.engine.async_llm:AsyncLLM._run_output_handler": "39cbfb3f342f",
    "vllm.v1.engine.async_llm:AsyncLLM.shutdown": "b62bf7524188",
    "vllm.v1.engine.output_processor:OutputProcessor.get_num_unfinished_requests": "8edfbeacabad",
}


def unfinished_count(llm: AsyncLLM) -> int:
    """Count the requests that vLLM holds."""
    return int(llm.output_processor.get_num_unfinished_requests())


def silence_end(llm: AsyncLLM) -> None:
    """Cancel the task that reads vLLM's output: in a `shutdown` it reports its end as a failure."""
    if handler := llm.output_handler:
        handler.cancel()
