"""Tiny random Hugging Face models, saved once a session: weights far from zero, biases and norms randomised."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5  # of the largest logit, in fp32

V = 96
LLAMA = {
    "vocab_size": V,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
GPT2 = {"vocab_size": V, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}
BLOOM = {"vocab_size": V, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}
BERT = {
    "vocab_size": V,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}

MIXTRAL = {**LLAMA, "num_local_experts": 4}

CAUSAL = {
    "gpt": ("OpenAIGPT", GPT2),
    "gpt2": ("GPT2", GPT2),
    "gpt2-untied": ("GPT2", {**GPT2, "tie_word_embeddings": False, "scale_attn_by_inverse_layer_idx": True}),
    "gpt2-erf": ("GPT2", {**GPT2, "activation_function": "gelu", "n_inner": 40, "scale_attn_weights": False}),
    "llama": ("Llama", LLAMA),
    "llama-mha": ("Llama", {**LLAMA, "num_key_value_heads": 4}),
    "llama-tied": ("Llama", {**LLAMA, "tie_word_embeddings": True, "head_dim": 16}),
    "llama-bias": ("Llama", {**LLAMA, "attention_bias": True, "mlp_bias": True, "rope_theta": 500000.0}),
    "llama-linear": ("Llama", {**LLAMA, "rope_scaling": {"rope_type": "linear", "factor": 2.5}}),
    "llama-dynamic": (
        "Llama",
        {**LLAMA, "max_position_embeddings": 8, "rope_scaling": {"type": "dynamic", "factor": 3.0}},
    ),
    "llama3": (
        "Llama",
        {
            **LLAMA,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "mixtral": ("Mixtral", MIXTRAL),
    "mixtral-top-1": ("Mixtral", {**MIXTRAL, "num_experts_per_tok": 1, "tie_word_embeddings": True, "head_dim": 16}),
    "mixtral-window": (
        "Mixtral",
        {**MIXTRAL, "num_experts_per_tok": 3, "sliding_window": 5, "rope_scaling": {"type": "linear", "factor": 2.0}},
    ),
    "bloom": ("Bloom", BLOOM),
    "bloom-3-heads": ("Bloom", {**BLOOM, "hidden_size": 36, "n_head": 3}),
    "bloom-post-norm": (
        "Bloom",
        {**BLOOM, "n_head": 8, "apply_residual_connection_post_layernorm": True, "tie_word_embeddings": False},
    ),
}
_CLASSES = {
    "OpenAIGPT": ("OpenAIGPTConfig", "OpenAIGPTLMHeadModel"),
    "GPT2": ("GPT2Config", "GPT2LMHeadModel"),
    "Llama": ("LlamaConfig", "LlamaForCausalLM"),
    "Mixtral": ("MixtralConfig", "MixtralForCausalLM"),
    "Bloom": ("BloomConfig", "BloomForCausalLM"),
}
BERT_CLASSES = [
    "BertModel",
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "BertForSequenceClassification",
    "BertForTokenClassification",
]


def randomise(model, seed=1):
    """Moves biases and norms away from the 0 and 1 that they start from."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def build(config_name, class_name, values):
    torch.manual_seed(0)
    config = getattr(transformers, config_name)(**values, attn_implementation="eager")
    return randomise(getattr(transformers, class_name)(config))


def difference(ours, theirs, real=None) -> float:
    """The largest difference as a share of the largest reference value; ``real`` (B, T) selects positions."""
    ours, theirs = np.asarray(ours, np.float64), theirs.detach().double().numpy()
    assert ours.shape == theirs.shape
    if real is not None:
        ours, theirs = ours[real], theirs[real]
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def padded_batch(seed=0, rows=3, length=11, side="left"):
    """int32 ids and mask (B, T): row i has 4 * i padding tokens on one side."""
    rng = np.random.default_rng(seed)
    ids, mask = rng.integers(0, V, (rows, length)).astype(np.int32), np.ones((rows, length), np.int32)
    for i in range(rows):
        mask[i, slice(0, 4 * i) if side == "left" else slice(length - 4 * i, length)] = 0
    return ids, mask


class Zoo:
    """Builds each reference model once; gives (transformers model, folder)."""

    def __init__(self, root):
        self.root, self.made = root, {}

    def _save(self, name, make):
        if name not in self.made:
            model = make()
            model.save_pretrained(self.root / name)
            self.made[name] = (model, self.root / name)
        return self.made[name]

    def causal(self, name):
        family, values = CAUSAL[name]
        return self._save(name, lambda: build(*_CLASSES[family], values))

    def bert(self, name):
        return self._save(name, lambda: build("BertConfig", name, {**BERT, "num_labels": 3}))
