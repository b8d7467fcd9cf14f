"""Greedy and beam ids equal transformers'; the cache changes nothing; processors keep the same tokens."""

import numpy as np
import pytest
from mindspore import Tensor

import msllm
from msllm.errors import UserError
from msllm.generation import GenerationConfig, generate_ids
from msllm.generation.sampling import keep_min_p, keep_top_k, keep_top_p, penalise_repetition
from tests.parity.reference import CAUSAL, TOLERANCE, V, difference, torch, transformers

PROMPTS = [[5, 17, 3, 80, 41, 9], [7, 7], [60, 2, 33, 12]]
NAMES = [
    "gpt",
    "gpt2",
    "gpt2-erf",
    "llama",
    "llama-tied",
    "llama3",
    "mixtral",
    "mixtral-top-1",
    "bloom-3-heads",
    "bloom-post-norm",
]


def theirs_generate(model, prompts, **options):
    """transformers' ids, one list a prompt, ending at the first end token."""
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :], mask[row, longest - len(prompt) :] = torch.tensor(prompt), 1
    ends = options.pop("eos_token_id", None)
    model.generation_config = transformers.GenerationConfig(pad_token_id=0, eos_token_id=ends)
    with torch.no_grad():
        out = model.generate(ids, attention_mask=mask, do_sample=False, **options)[:, longest:].tolist()
    cut = []
    for row in out:
        stop = next((i + 1 for i, t in enumerate(row) if t in (ends or [])), len(row))
        cut.append(row[:stop])
    return cut


@pytest.mark.parametrize("name", NAMES)
def test_greedy_batch_with_left_padding_equals_transformers(zoo, name):
    theirs, folder = zoo.causal(name)
    ours = generate_ids(msllm.from_pretrained(folder), PROMPTS, GenerationConfig(max_new_tokens=20, eos_token_id=[]))
    # transformers gives a GPT no attention mask: only rows without padding are right there.
    parts = [[prompt] for prompt in PROMPTS] if name == "gpt" else [PROMPTS]
    assert [g.ids for g in ours] == [ids for part in parts for ids in theirs_generate(theirs, part, max_new_tokens=20)]
    assert {g.finish_reason for g in ours} == {"length"}


@pytest.mark.parametrize("ends", [[], [11, 50, 71, 30]])
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 4, "length_penalty": 2.0},
        {"num_beams": 2, "length_penalty": -0.5},
        {"num_beams": 5, "early_stopping": True},
        {"num_beams": 3, "repetition_penalty": 1.3},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["gpt2", "llama", "mixtral", "bloom"])
def test_beam_search_equals_transformers(zoo, name, options, ends):
    theirs, folder = zoo.causal(name)
    prompts = PROMPTS if "repetition_penalty" not in options else PROMPTS[:1]  # transformers counts padding ids too
    config = GenerationConfig(max_new_tokens=12, eos_token_id=ends, **options)
    expected = theirs_generate(theirs, prompts, max_new_tokens=12, eos_token_id=ends or None, **options)
    assert [g.ids for g in generate_ids(msllm.from_pretrained(folder), prompts, config)] == expected


def test_end_tokens_end_a_row_and_not_the_others(zoo):
    _theirs, folder = zoo.causal("llama")
    model = msllm.from_pretrained(folder)
    free = [g.ids for g in generate_ids(model, PROMPTS, GenerationConfig(max_new_tokens=8, eos_token_id=[]))]
    end = free[1][3]
    ended = generate_ids(model, PROMPTS, GenerationConfig(max_new_tokens=8, eos_token_id=[end]))
    for before, after in zip(free, ended):
        stop = before.index(end) + 1 if end in before else len(before)
        assert after.ids == before[:stop]
        assert after.finish_reason == ("eos" if end in before else "length")


@pytest.mark.parametrize("name", [n for n in CAUSAL if n != "llama-dynamic"])
def test_cached_equals_uncached(zoo, name):
    """Dynamic scaling is left out: beyond the trained length it turns old keys too, which a cache cannot."""
    _, folder = zoo.causal(name)
    model = msllm.from_pretrained(folder)
    ids = np.random.default_rng(0).integers(0, V, (2, 14)).astype(np.int32)
    whole = model(Tensor(ids)).asnumpy()
    cache = model.make_cache(2, 20)
    for start, end in ((0, 6), (6, 7), (7, 11), (11, 14)):
        logits = model.next_logits(Tensor(ids[:, start:end]), None, None, cache).asnumpy()
        assert difference(logits, torch.tensor(whole[:, end - 1])) < TOLERANCE


def test_processors_keep_the_tokens_that_transformers_keeps():
    logits = np.random.default_rng(1).normal(0, 3, 500).astype(np.float32)
    scores, ids = torch.tensor(logits)[None], [3, 9, 9, 400]
    lp = transformers.generation.logits_process
    for mine, theirs in (
        (keep_top_k(logits, 17), lp.TopKLogitsWarper(17)),
        (keep_top_p(logits, 0.8), lp.TopPLogitsWarper(0.8)),
        (keep_top_p(logits, 1e-6), lp.TopPLogitsWarper(1e-6)),
        (keep_min_p(logits, 0.05), lp.MinPLogitsWarper(0.05)),
        (penalise_repetition(logits, ids, 1.7), lp.RepetitionPenaltyLogitsProcessor(1.7)),
    ):
        assert np.array_equal(mine, theirs(torch.tensor([ids]), scores.clone())[0].numpy())


def test_draws_follow_the_distribution_and_the_seed(zoo):
    _, folder = zoo.causal("gpt2-erf")
    model = msllm.from_pretrained(folder)
    runs = [
        generate_ids(
            model,
            [[5, 6]],
            GenerationConfig(max_new_tokens=6, do_sample=True, temperature=3.0, seed=s, eos_token_id=[]),
        )[0].ids
        for s in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]
    alone = generate_ids(model, [[5, 6]], GenerationConfig(max_new_tokens=1, do_sample=True, seed=1, eos_token_id=[]))
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    from msllm.generation.sampling import draw

    rng = np.random.default_rng(0)
    counts = np.bincount([draw(logits, rng) for _ in range(20000)], minlength=3) / 20000
    assert np.abs(counts - [0.5, 0.3, 0.2]).max() < 0.012  # four standard deviations
    assert len(alone[0].ids) == 1


def test_a_prompt_that_fills_the_context_is_refused_and_answers_end_with_it(zoo):
    _, folder = zoo.causal("gpt2")
    model = msllm.from_pretrained(folder)
    with pytest.raises(UserError, match="64 tokens, the model's context is 64"):
        generate_ids(model, [[1] * 64], GenerationConfig())
    assert len(generate_ids(model, [[1] * 60], GenerationConfig(max_new_tokens=50, eos_token_id=[]))[0].ids) == 4
    with pytest.raises(UserError, match="token id 96, the model knows 0 to 95"):
        generate_ids(model, [[96]], GenerationConfig())
