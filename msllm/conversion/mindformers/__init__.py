"""The bridge to MindFormers 1.9.0: checkpoints under its names, run YAMLs in its format, both ways.

It needs names and files only; nothing here imports MindFormers.
"""

from msllm.lazy import exports

__all__, __getattr__ = exports(
    __name__,
    {
        "Run": "run",
        "from_mindformers": "folders",
        "from_run_yaml": "run_yaml",
        "is_mindformers": "files",
        "to_mindformers": "folders",
        "to_run_yaml": "run_yaml",
    },
)
