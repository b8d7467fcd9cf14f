"""From a prompt to text: sampling, beam search, streaming, chat."""

from msllm.lazy import exports

__all__, __getattr__ = exports(
    __name__,
    {
        "ChatSession": "chat",
        "Generated": "generate",
        "GenerationConfig": "config",
        "generate_ids": "generate",
        "generate_text": "text",
        "stream_text": "text",
    },
)
