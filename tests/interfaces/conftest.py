"""Tiny random models of transformers, saved with tokenizers that both libraries read."""

import pytest

WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] ada bob lives in rome paris where who does ? . good bad film the is a un ##aff "
    "##able ##s play to and work he she went home by train"
)
LABELS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC"}


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """Returns a function: name of a class of transformers -> folder of a tiny random model with its tokenizer."""
    reference = pytest.importorskip("tests.parity.reference")
    transformers, made = reference.transformers, {}

    def bert_tokenizer(folder):
        (folder / "vocab.txt").write_text(WORDS.replace(" ", "\n") + "\n")
        transformers.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=48).save_pretrained(folder)
        return {"vocab_size": len(WORDS.split())}

    def gpt2_tokenizer(folder):
        from msllm.tokenization import train_tokenizer

        texts = ["Ada lives in Rome, Bob in Paris.", "who lives where? 1 2 3", "the film is good and the play is not"]
        tokenizer = train_tokenizer(texts, 300, "bpe")
        tokenizer.save_pretrained(folder)
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        return {"vocab_size": len(tokenizer), **{name: getattr(tokenizer, name) for name in names}}

    def make(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("zoo") / name
            folder.mkdir()
            family, tokenizer = ("BERT", bert_tokenizer) if name.startswith("Bert") else ("GPT2", gpt2_tokenizer)
            values = {**getattr(reference, family), **tokenizer(folder)}
            if name.endswith(("SequenceClassification", "TokenClassification")):
                values |= {"id2label": LABELS, "label2id": {label: i for i, label in LABELS.items()}}
            config = {"BERT": "BertConfig", "GPT2": "GPT2Config"}[family]
            reference.build(config, name, values).save_pretrained(folder)
            made[name] = folder
        return made[name]

    return make
