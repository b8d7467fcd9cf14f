"""Training on several processes."""

from msllm.lazy import exports

__all__, __getattr__ = exports(
    __name__,
    {
        "ParallelConfig": "config",
        "Server": "server",
        "Strategy": "strategy",
        "Workers": "comm",
        "join": "strategy",
        "run_job": "launch",
        "run_on_workers": "launch",
        "start_workers": "comm",
    },
)
