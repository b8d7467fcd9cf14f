"""The interfaces that readers of MindFormers and transformers know: Trainer, pipeline, Auto classes, Transformer.

Their names are in ``msllm`` itself; see msllm/__init__.py.
"""
