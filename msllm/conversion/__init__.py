"""From other checkpoint formats to Hugging Face folders with safetensors."""
