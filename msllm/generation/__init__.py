"""From a prompt to text: sampling, beam search, streaming, chat."""

from msllm.generation.beam import beam_search
from msllm.generation.chat import ChatSession
from msllm.generation.config import GenerationConfig
from msllm.generation.generate import Generated, generate
from msllm.generation.text import generate_text, stream_text

__all__ = ["ChatSession", "Generated", "GenerationConfig", "beam_search", "generate", "generate_text", "stream_text"]
