"""Chapter 2, the Transformer: attention step by step, positions, and a translator from nothing.

msllm chapter 2                          lists the runs
msllm chapter 2 --run train              German to English, the full run
msllm chapter 2 --run train --quick      the same in under two minutes, which learns little
"""

from msllm.lessons import Run, run

# On so little text, strong dropout matters more than size.
TRANSLATOR = {
    "vocab_size": 8000,
    "lowercase": True,
    "d_model": 256,
    "layers": 3,
    "heads": 8,
    "ffn_dim": 512,
    "dropout": 0.3,
    "label_smoothing": 0.1,
    "resume": "auto",
    "overwrite": True,
}
SCHEDULE = {
    "train_batch_tokens": 4096,
    "learning_rate": 1.5e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 400,
    "adam_beta2": 0.98,
    "adam_epsilon": 1e-9,
    "per_device_eval_batch_size": 100,
    "save_total_limit": 2,
}


@run("2.1 attention from the dot product up: every step with its shape, and a heat map", short=True)
def attention(job: Run) -> None:
    import numpy as np
    from mindspore import Tensor

    from msllm import kernels
    from msllm.layers import attention_weights
    from msllm.lessons.figures import heat_maps

    words = ["the", "cat", "sat", "on", "the", "mat"]
    T, H, C = len(words), 2, 8
    rng = np.random.default_rng(job.seed)
    x_TD = rng.normal(size=(T, H * C)).astype(np.float32)
    q_THC, k_THC, v_THC = (
        (x_TD @ rng.normal(size=(H * C, H * C)).astype(np.float32) * C**-0.5).reshape(T, H, C) for _ in range(3)
    )
    scores_HTT = np.einsum("thc,shc->hts", q_THC, k_THC) * C**-0.5
    job.say(f"x {x_TD.shape} -> q, k, v {q_THC.shape} each: {T} words, {H} heads of width {C}")
    job.say(f"scores = q k^T / sqrt({C}) {scores_HTT.shape}: row t of head h says how well each word suits word t")
    seen = np.tril(np.ones((T, T), bool))
    weights = {}
    for name, visible in (("every word", np.ones_like(seen)), ("earlier words only", seen)):
        e = np.exp(np.where(visible, scores_HTT, -np.inf) - scores_HTT.max(-1, keepdims=True))
        weights[name] = e / e.sum(-1, keepdims=True)
        out_THC = np.einsum("hts,shc->thc", weights[name], v_THC)
        batch = [Tensor(a[None]) for a in (q_THC, k_THC, v_THC)]
        library = kernels.attention(*batch, C**-0.5, name != "every word").asnumpy()[0]
        job.say(
            f"softmax over {name}, times v -> {out_THC.shape}; largest difference from msllm's kernel "
            f"{np.abs(library - out_THC).max():.1e}"
        )
        assert np.allclose(weights[name], attention_weights(*batch[:2], C**-0.5, name != "every word")[0], atol=1e-6)
    panels = [w[h] for w in weights.values() for h in range(H)]
    titles = [f"{name}, head {h + 1}" for name in weights for h in range(H)]
    job.savefig("attention.png", heat_maps(panels, titles, words, words))


@run("2.2 sinusoidal positions: the encodings, and how alike two of them are by distance", short=True)
def positions(job: Run) -> None:
    from msllm.layers import sinusoidal
    from msllm.lessons.figures import curves, encoding_picture

    encoding_TD = sinusoidal(128, 64)
    job.savefig("positions.png", encoding_picture(encoding_TD))
    products = encoding_TD @ encoding_TD.T
    job.say(
        f"the product of two encodings depends on their distance alone: 10 and 14 {products[10, 14]:.4f}, "
        f"90 and 94 {products[90, 94]:.4f}; with itself {products[10, 10]:.4f}"
    )
    series = {f"position {t}": (list(range(128)), products[t]) for t in (0, 40, 100)}
    job.savefig("position-products.png", curves(series, "other position", "dot product"))


@run("2.4 byte-pair encoding by hand: the textbook example, and 1,000 merges beside the tokenizers library", short=True)
def bpe(job: Run) -> None:
    from msllm.tokenization import bpe as lesson
    from msllm.tokenization import train_tokenizer

    textbook = lesson.train(["aaabdaaabac"], 256 + 3)
    job.say(f"aaabdaaabac, 3 merges: {textbook.merges} -> {lesson.encode('aaabdaaabac', textbook)}")
    text = [line for run in (train, evaluate, news) for line in run.description.split(", ")]
    if job.has("multi30k"):
        from msllm.data.parallel_text import read_lines

        text = read_lines(job.file("multi30k/train.de.gz"))[: 2000 if job.quick else None]
    library = train_tokenizer(text, 1256)
    specials = [library.pad_token, library.unk_token, library.bos_token, library.eos_token]
    mine = lesson.train(text, 1256, lesson.GPT2_PATTERN, specials)
    same = sum(lesson.encode(line, mine) == library.encode(line) for line in text)
    job.say(f"{len(mine.merges)} merges on {len(text)} lines; the first: {[a + b for a, b in mine.merges[:12]]}")
    job.say(f"lines with ids equal to the tokenizers library's: {same} of {len(text)}")
    assert same == len(text)


@run("Multi30k, German to English: train the translator (about 75 minutes)", needs=("multi30k",))
def train(job: Run) -> None:
    from msllm.commands.translate import train_translator
    from msllm.training import TrainingArguments

    files = {
        "source": "train.de",
        "target": "train.en",
        "eval_source": "val.de",
        "eval_target": "val.en",
    }
    paths = {option: str(job.file(f"multi30k/{name}.gz")) for option, name in files.items()}
    length = {"max_steps": 20} if job.quick else {"num_train_epochs": 24, "eval_steps": 117, "save_steps": 117}
    train_translator(
        **paths,
        **TRANSLATOR,
        training=TrainingArguments(**SCHEDULE, **length, seed=job.seed),
        output=str(job.output),
        limit=2000 if job.quick else None,
    )


@run("2.4 translate the test sentences: BLEU, examples, attention maps (about 6 minutes)", needs=("multi30k",))
def evaluate(job: Run) -> None:
    import shutil

    from msllm import from_pretrained, load_tokenizer
    from msllm.data.parallel_text import read_parallel
    from msllm.evaluation.translation import score_translator
    from msllm.files import read_json_lines
    from msllm.generation import GenerationConfig
    from msllm.generation.translate import cross_attention
    from msllm.lessons.figures import heat_maps
    from msllm.training.report import training_seconds

    folder = job.earlier("train")
    model, tokenizer = from_pretrained(folder), load_tokenizer(folder)

    def score(part: str, beams: int, penalty: float) -> tuple[dict, list[str]]:
        pairs = read_parallel(*(job.file(f"multi30k/{part}.{language}.gz") for language in ("de", "en")))
        pairs = pairs.first(20) if job.quick else pairs
        config = GenerationConfig(num_beams=beams, length_penalty=penalty)
        return score_translator(model, tokenizer, pairs, config, lowercase=True)

    penalties = {penalty: score("val", 5, penalty)[0]["bleu"] for penalty in (0.6, 1.0, 1.4)}
    best = max(penalties, key=penalties.get)  # chosen on val, never on the test part
    greedy, (beam, translations) = score("test_2016_flickr", 1, best)[0], score("test_2016_flickr", 5, best)
    for figures in (greedy, beam):
        job.say(
            f"test_2016_flickr, {figures['num_beams']} beams: BLEU {figures['bleu']:.2f}, chrF {figures['chrf']:.2f}"
        )
    seconds = training_seconds(read_json_lines(folder / "log.jsonl"))
    job.say(f"the model was trained in {seconds / 60:.0f} minutes")
    figures = {"training_seconds": seconds, "val_by_length_penalty": penalties, "greedy": greedy, "beam": beam}
    job.write_json("bleu.json", figures)
    test = read_parallel(*(job.file(f"multi30k/test_2016_flickr.{language}.gz") for language in ("de", "en")))
    rows = list(zip(test.source, test.target, translations))
    lines = [f"{de}\n  reference: {en}\n  msllm:     {out}\n" for de, en, out in rows[:40]]
    job.write_text("translations.txt", "".join(lines))
    for n in (0, 3, 7):
        source, target, weights = cross_attention(model, tokenizer, rows[n][0], rows[n][2])
        titles = [f"layer {i + 1}, mean of the heads" for i in range(len(weights))]
        job.savefig(f"attention-{n + 1}.png", heat_maps(weights.mean(1), titles, target, source))
    shutil.copy(folder / "loss.png", job.results / "loss.png")


@run("another pair: 1,000 sentences of news, English to Chinese (about 6 minutes)", needs=("news_commentary_en_zh",))
def news(job: Run) -> None:
    from msllm import from_pretrained, load_tokenizer
    from msllm.commands.translate import train_translator
    from msllm.data.parallel_text import read_parallel
    from msllm.evaluation.translation import score_translator
    from msllm.generation import GenerationConfig
    from msllm.training import TrainingArguments

    pairs = read_parallel(job.file("news_commentary_en_zh/sampled.tsv"))
    train, test = pairs.first(len(pairs) - 100), pairs.last(10 if job.quick else 100)
    text = "".join(f"{en}\t{zh}\n" for en, zh in zip(train.source, train.target))
    (job.output / "train.tsv").write_text(text, encoding="utf-8")
    length = {"max_steps": 5} if job.quick else {"num_train_epochs": 40, "save_steps": 0}
    few = {"train_batch_tokens": 2048, "learning_rate": 1e-3, "warmup_steps": 100}  # an epoch is thirty steps
    folder = job.output / "model"
    train_translator(
        source=str(job.output / "train.tsv"),
        **{**TRANSLATOR, "vocab_size": 4000, "dropout": 0.1},
        training=TrainingArguments(**{**SCHEDULE, **few}, **length, seed=job.seed),
        output=str(folder),
    )
    model, tokenizer = from_pretrained(folder), load_tokenizer(folder)
    scores = {}
    for name, part in (("test sentences", test), ("training sentences", train.first(len(test)))):
        scores[name], _ = score_translator(model, tokenizer, part, GenerationConfig(num_beams=5), tokenize="zh")
        job.say(f"{len(part)} {name}: BLEU {scores[name]['bleu']:.2f}, chrF {scores[name]['chrf']:.2f}")
    job.write_json("news.json", scores)
