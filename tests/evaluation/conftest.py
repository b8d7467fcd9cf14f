"""A small random BERT with a vocabulary of words, and files of tasks that it can learn by heart."""

import json

import pytest

VOCABULARY = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] good great fine bad poor dull film book play a the is it was ##s ##ly and but "
    "ada bob eve lives in rome paris oslo who where ? . 我 们 好 坏"
)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """The folder of a bare body with 32 positions; tests must not write to it."""
    import mindspore as ms

    from msllm.models.bert import BertConfig, BertModel
    from msllm.tokenization import load_tokenizer

    folder = tmp_path_factory.mktemp("bert")
    source = folder / "vocabulary"
    source.mkdir()
    (source / "vocab.txt").write_text(VOCABULARY.replace(" ", "\n") + "\n")
    (source / "config.json").write_text('{"model_type": "bert"}')
    tokenizer = load_tokenizer(source)
    config = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
        "initializer_range": 0.2,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    ms.set_seed(3)
    BertModel(BertConfig.from_dict(config)).save_pretrained(folder / "model", tokenizer)
    return folder / "model"


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Training files by task."""
    folder = tmp_path_factory.mktemp("tasks")
    words = {"pos": ("good", "great", "fine"), "neg": ("bad", "poor", "dull")}
    rows = [(label, thing, word) for label in words for word in words[label] for thing in ("film", "book", "play")]
    lines = ["label\ttext_a", *(f"{label}\tthe {thing} is {word}" for label, thing, word in rows)]
    (folder / "texts.tsv").write_text("\n".join(lines) + "\n")
    pairs = [(name, city) for name in ("ada", "bob", "eve") for city in ("rome", "paris", "oslo")]
    tagged = (f"{name} B-PER\nlives O\nin O\n{city} B-LOC\n. O\n" for name, city in pairs)
    (folder / "tags.conll").write_text("\n".join(tagged))
    paragraphs = []
    for name, city in pairs:
        context = f"{name} lives in {city} ."
        asked = {f"{name}-{city}-who": ("who ?", name), f"{name}-{city}-where": ("where ?", city)}
        qas = [
            {"id": key, "question": question, "answers": [{"text": text, "answer_start": context.index(text)}]}
            for key, (question, text) in asked.items()
        ]
        paragraphs.append({"context": context, "qas": qas})
    (folder / "questions.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return {
        "text-classification": folder / "texts.tsv",
        "token-classification": folder / "tags.conll",
        "question-answering": folder / "questions.json",
    }


@pytest.fixture(scope="session")
def tuned(tiny_bert, files, tmp_path_factory):
    """Returns a function: task -> folder of a model that was fine-tuned until it knew the task's file by heart."""
    from msllm.cli import main

    made = {}

    def tune(task):
        if task not in made:
            folder = tmp_path_factory.mktemp("tuned") / task
            options = {
                "task": task,
                "model": tiny_bert,
                "data": files[task],
                "eval_data": files[task],
                "test_data": files[task],
                "output": folder,
                "learning_rate": "1e-2",
                "num_train_epochs": "20",
                "per_device_train_batch_size": "6",
            }
            if task == "question-answering":
                options["doc_stride"] = "8"
            assert main(["finetune-task", *(word for k, v in options.items() for word in (f"--{k}", str(v)))]) == 0
            made[task] = folder
        return made[task]

    return tune
