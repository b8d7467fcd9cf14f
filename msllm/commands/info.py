"""msllm info: what runs here."""

import importlib.metadata
import platform


def info() -> None:
    """Prints versions, device, kernels and threads: what to put into a bug report."""
    import msllm
    from msllm import kernels
    from msllm.kernels import build

    rows = {"msllm": msllm.__version__, "python": platform.python_version(), "system": platform.platform()}
    for package in ("mindspore", "mindformers", "numpy", "tokenizers", "sentencepiece", "safetensors", "datasets"):
        try:
            rows[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            rows[package] = "not installed"
    rows["device"] = kernels.DEVICE
    rows["kernels"] = kernels.active()
    rows |= {f"kernels: {key}": value for key, value in build.status().items() if value not in ("", None)}
    if kernels.active() == "cpu":
        from msllm.kernels import cpu

        rows["kernels: path in use"] = cpu.path_in_use()
    for key, value in rows.items():
        print(f"{key:24} {value}")
