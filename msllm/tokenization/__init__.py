"""Text to ids and back: Hugging Face tokenizer folders, chat templates, streaming decode, training a vocabulary."""

from msllm.tokenization.chat import default_chat_template
from msllm.tokenization.loading import load_tokenizer
from msllm.tokenization.streaming import StreamDecoder
from msllm.tokenization.tokenizer import Tokenizer
from msllm.tokenization.train import train_tokenizer

__all__ = ["StreamDecoder", "Tokenizer", "default_chat_template", "load_tokenizer", "train_tokenizer"]
