"""Training on several processes."""

from msllm.lazy import exports

__all__, __getattr__ = exports(__name__, {"Workers": "comm", "run_on_workers": "launch", "start_workers": "comm"})
