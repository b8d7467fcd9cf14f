"""Chapter 1, how language models came about: from counting characters to GPT-2, on one text.

msllm chapter 1                          lists the runs
msllm chapter 1 --run ngram              n-grams by two ways of smoothing
msllm chapter 1 --run neural --quick     a small setting, in under two minutes
msllm chapter 1 --run table              what ngram and neural wrote, side by side
"""

import csv
import math
import time
from pathlib import Path

from msllm.errors import UserError
from msllm.files import read_json
from msllm.lessons import Run, run

FOLDER = Path(__file__).parent
TEXT, NEEDS = "tinyshakespeare/input.txt", ("tinyshakespeare",)
WORDS = ["king", "queen", "father", "brother", "love", "death", "night", "rome", "he", "thou", "blood", "hand"]
DRAWN = [*WORDS, "duke", "lord", "lady", "mother", "sister", "son", "daughter", "she", "him", "her", "his"]
DRAWN += ["thee", "thy", "you", "your", "day", "morning", "romans", "york", "lancaster", "hate"]
ANALOGIES = ["he his she", "i my he", "thou thy you", "king queen he", "man woman king", "father mother son"]


@run("n-gram models, Kneser-Ney and back-off: bits per character, samples; seconds", needs=NEEDS, short=True)
def ngram(job: Run) -> None:
    from msllm.classic import AbsoluteBackoff, bits, figures, perplexity, read_characters

    alphabet, ids, start = read_characters(job.file(TEXT))
    rows = [{"name": "uniform", "context": 0, "stored": 0, "bits": math.log2(len(alphabet)), "cpu_seconds": 0}]
    plans = [(AbsoluteBackoff, "unigram", 1)]
    plans += [(kind, f"{name}, n = {n}", n) for kind, name in _smoothings() for n in range(2, 7 if job.quick else 11)]
    for kind, name, order in plans:
        began = time.process_time()
        model = kind(ids[:start], len(alphabet), order)
        row = {"name": name, "context": order - 1, "stored": model.stored, "cpu_seconds": time.process_time() - began}
        found = model.log_probabilities(ids, start)
        row |= {"bits": bits(found), "perplexity": perplexity(found), "discounts": model.discounts}
        row["seen"] = model.seen(ids, start)
        row["sample"] = alphabet.decode(model.generate(300, ids[start - 10 : start], job.seed))
        rows.append(row)
        job.say(
            f"{name:18} {row['bits']:.4f} bits, {model.stored:9,} n-grams, {row['seen']:.3f} of the held-out ones seen"
        )
        row["fixed_discounts"] = [k for k, own in enumerate(getattr(model, "estimated", []), 1) if not own]
    job.write_json("ngram.json", {"held_out": len(ids) - start, "vocabulary": len(alphabet), "rows": rows})
    job.savefig("ngram.png", figures.by_order(rows, ["Kneser-Ney", "back-off"]))


@run("word vectors by skip-gram: neighbours, analogies, a picture; two and a half minutes", needs=NEEDS)
def word2vec(job: Run) -> None:
    from msllm.classic import SkipGram, cosine_similarity, figures, one_hot, split, words

    text = job.file(TEXT).read_text(encoding="utf-8")
    model = SkipGram(words(text[: split(len(text))]), seed=job.seed)
    losses = model.train(1 if job.quick else 15, progress=lambda e, x: job.say(f"epoch {e}: loss {x:.4f} a pair"))
    near = {word: model.nearest(word) for word in WORDS}
    analogies = {asked: model.analogy(*asked.split()) for asked in ANALOGIES}
    for asked, answer in {**near, **analogies}.items():
        job.say(f"{asked:18} {', '.join(f'{word} {cosine:.2f}' for word, cosine in answer)}")
    pair = [model.index["king"], model.index["queen"]]
    cosines = [float(cosine_similarity(v)[0, 1]) for v in (one_hot(pair, len(model.vocabulary)), model.vectors()[pair])]
    job.say(f"cosine of king and queen: {cosines[0]:.2f} one-hot, {cosines[1]:.2f} as vectors")
    sizes = {"words": len(model.ids), "vocabulary": len(model.vocabulary), "losses": losses}
    job.write_json("word2vec.json", {**sizes, "nearest": near, "analogies": analogies, "king_queen": cosines})
    job.savefig("words.png", figures.words(DRAWN, model.vectors()[[model.index[word] for word in DRAWN]]))


@run("neural n-gram, LSTM and GPT-2 through the one Trainer; about 20 minutes on two cores", needs=NEEDS)
def neural(job: Run) -> None:
    import mindspore as ms
    import numpy as np

    from msllm.classic import KneserNey, WindowTask, read_characters, sample

    alphabet, ids, start = read_characters(job.file(TEXT))
    task = WindowTask(ids[: start + 5000] if job.quick else ids, start, block=64, batch=12, seed=job.seed)
    rows, long = [], {}
    for name, make, steps, rate, context, memory in _networks(len(alphabet), task.block):
        ms.set_seed(job.seed)
        model = make()
        row = {"name": name, "parameters": sum(p.size for p in model.trainable_params()), "learning_rate": rate}
        folder = job.output / "".join(c if c.isalnum() else "-" for c in name)
        row |= task.train(model, folder, 40 if job.quick else steps, rate, context)
        found, before = task.held_out_bits(model, context)
        long[name], reach = task.held_out_bits(model, max(context, memory // 2), memory)
        row |= {"bits": found.mean(), "context": [before.min(), before.max()]}
        row |= {"bits_long": long[name].mean(), "context_long": [reach.min(), reach.max()]}
        row["bits_by_context"] = [found[before == n].mean() for n in range(context, task.block + 1)]
        row["sample"] = alphabet.decode(sample(model, ids[start - task.block : start], 300, task.block, job.seed))
        rows.append(row)
        job.say(f"{name:28} {row['bits']:.4f} bits; {row['bits_long']:.4f} with {row['context_long']} before")
    counts = KneserNey(ids[:start], len(alphabet), 6).log_probabilities(task.ids, start)
    for name in ("LSTM", "GPT-2"):
        mixed = 1 - np.logaddexp2(-long[name], counts / np.log(2))
        rows.append({"name": f"{name} and Kneser-Ney 6, half each", "bits": mixed.mean()})
        job.say(f"{rows[-1]['name']:28} {rows[-1]['bits']:.4f} bits")
    job.write_json("neural.json", {"held_out": len(task.ids) - start, "rows": rows})


@run("the table and figures of what ngram and neural left in results/; seconds", short=True)
def table(job: Run) -> None:
    from msllm.classic import figures

    kept = {name: FOLDER / "results" / f"{name}.json" for name in ("ngram", "neural")}
    if missing := [name for name, path in kept.items() if not path.is_file()]:
        raise UserError(f"results/{missing[0]}.json is not there; first run: msllm chapter 1 --run {missing[0]}")
    counted, trained = (
        [{**row, "kind": row["name"].partition(",")[0]} for row in read_json(path)["rows"]] for path in kept.values()
    )
    shown = [r for r in counted if r["context"] <= 5] + trained
    for r in shown:
        size = r.get("parameters", r.get("stored", "-"))
        seconds, long = (f"{r[k]:.{n}f}" if k in r else "-" for k, n in (("cpu_seconds", 2), ("bits_long", 3)))
        job.say(f"{r['name']:34} {size:>8} {seconds:>7} s {r['bits']:.3f} {long:>5} bits")
    job.write_json("bits-per-character.json", {"rows": [{k: r[k] for k in r if k != "sample"} for r in shown]})
    job.savefig("bits-per-character.png", figures.bars(shown))
    names = [name for _, name in _smoothings()]
    fixed = {name: [(r["context"], r["bits"]) for r in counted if r["name"].startswith(name)] for name in names}
    fixed["neural n-gram"] = [(r["context"][0], r["bits"]) for r in trained if r["name"].startswith("neural")]
    reading = {r["name"]: r["bits_by_context"] for r in trained if r.get("context", [0])[0] == 1}
    job.savefig("context.png", figures.by_context(fixed, reading))
    levels = {r["name"]: r["bits"] for r in counted if r["name"] in ("Kneser-Ney, n = 4", "Kneser-Ney, n = 6")}
    job.savefig("curves.png", figures.curves({r["name"]: r["curve"] for r in trained if "curve" in r}, levels))


@run("years, parameters and training tokens of language models, from timeline.csv; seconds", short=True)
def timeline(job: Run) -> None:
    from msllm.classic import figures

    with (FOLDER / "timeline.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for key in ("parameters", "training_tokens"):
            row[key] = float(row[key]) if row[key] else None
    job.write_json("timeline.json", {"rows": rows})
    job.savefig("timeline.png", figures.timeline(rows))


def _smoothings() -> list[tuple]:
    from msllm.classic import AbsoluteBackoff, KneserNey

    return [(KneserNey, "Kneser-Ney"), (AbsoluteBackoff, "back-off")]


def _networks(vocab_size: int, block: int) -> list[tuple]:
    """Name, maker, steps, learning rate, characters before the first prediction of a window, longest memory tried."""
    from msllm.classic import LSTMConfig, LSTMForCausalLM, NeuralNGram, NeuralNGramConfig
    from msllm.models.gpt2 import GPT2Config, GPT2LMHeadModel

    def bengio(context):
        sizes = {"context_size": context, "embedding_size": 32, "hidden_size": 512}
        return lambda: NeuralNGram(NeuralNGramConfig(vocab_size=vocab_size, **sizes))

    def lstm():
        return LSTMForCausalLM(LSTMConfig(vocab_size=vocab_size, embedding_size=64, hidden_size=256))

    def gpt2():
        sizes = {"n_positions": block + 1, "n_embd": 128, "n_layer": 4, "n_head": 4}
        no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, **sizes, **no_dropout))

    nets = [(f"neural n-gram, {n} characters", bengio(n), 2000, 2e-3, n, block) for n in (4, 8, 16)]
    nets += [("LSTM", lstm, 2000, 2e-3, 1, 4 * block), ("GPT-2", gpt2, 2000, 1e-3, 1, block)]
    return [*nets, ("GPT-2, three times as long", gpt2, 6000, 1e-3, 1, block)]
