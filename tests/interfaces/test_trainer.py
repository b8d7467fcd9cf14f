"""msllm.Trainer: runs equal to those of the commands, figures, predictions, layouts, refusals."""

import json

import mindspore as ms
import numpy as np
import pytest

import msllm
from msllm.data.mindrecord import write_shards
from msllm.data.pretraining import build_pretraining
from msllm.data.questions import Question
from msllm.data.tagged import TaggedSentence
from msllm.data.token_file import write_tokens
from msllm.errors import UserError
from msllm.files import read_json_lines
from msllm.models.bert import BertConfig
from msllm.models.gpt2 import GPT2Config
from msllm.models.transformer import TransformerConfig
from msllm.tokenization import load_tokenizer, train_tokenizer
from tests.interfaces.conftest import WORDS

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BERT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, **STILL}
BY_HEART = {"learning_rate": 1e-2, "num_train_epochs": 15, "per_device_train_batch_size": 6, "save_steps": 0}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """A folder with train.bin, validation.bin and a tokenizer; each id but tells the next."""
    folder = tmp_path_factory.mktemp("tokens")
    tokenizer = train_tokenizer(["one two three"], 260)
    tokenizer.save_pretrained(folder)
    ids = (np.cumsum(np.random.default_rng(0).integers(1, 3, 1150)) * 7) % len(tokenizer)
    for name, part in (("train.bin", ids[:1000]), ("validation.bin", ids[1000:])):
        write_tokens(folder / name, [part], tokenizer, "words")
    return folder


@pytest.fixture(scope="module")
def bert_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "vocab.txt").write_text(WORDS.replace(" ", "\n") + "\n")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def bert(bert_tokenizer, tmp_path_factory):
    """The folder of a body with random weights."""
    folder = tmp_path_factory.mktemp("bert") / "model"
    ms.set_seed(3)
    config = BertConfig.from_dict({"vocab_size": len(bert_tokenizer), "initializer_range": 0.2, **BERT})
    msllm.AutoModel.from_config(config).save_pretrained(folder, bert_tokenizer)
    return folder


def gpt2(**more):
    return GPT2Config(**{"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 260, **more})


def losses(folder):
    return [entry["loss"] for entry in read_json_lines(folder / "log.jsonl") if "loss" in entry]


def test_pretraining_is_the_command_and_the_rest_follows(tokens, tmp_path):
    from msllm.commands.pretrain import pretrain

    args = {"max_steps": 12, "learning_rate": 1e-2, "per_device_train_batch_size": 4, "save_steps": 5}
    pretrain(
        data=str(tokens),
        training=msllm.TrainingArguments(**args),
        output=str(tmp_path / "command"),
        hidden_size=16,
        layers=2,
        heads=2,
        max_positions=32,
        dropout=0.1,
    )
    trainer = msllm.Trainer("text_generation", gpt2(), args, train_dataset=tokens, output_dir=tmp_path / "trainer")
    with pytest.raises(UserError, match="the new gpt2 has no trained weights; train it first"):
        trainer.evaluate()
    state = trainer.train()
    assert state.step == 12
    assert losses(tmp_path / "trainer") == losses(tmp_path / "command") and len(losses(tmp_path / "trainer")) == 12
    logged = [e["eval_loss"] for e in read_json_lines(tmp_path / "trainer" / "log.jsonl") if "eval_loss" in e]
    figures = trainer.evaluate()
    assert figures["loss"] == pytest.approx(logged[-1], rel=1e-6)
    assert figures["perplexity"] == pytest.approx(np.exp(figures["loss"]))
    assert figures == trainer.evaluate(tokens / "validation.bin", eval_checkpoint=True)
    # Two inputs, two dicts; the folder of the result gives the same.
    found = trainer.predict(["one", "two th"], max_new_tokens=4)
    pipe = msllm.pipeline("text-generation", tmp_path / "trainer")
    assert found == [pipe(text, max_new_tokens=4)[0] for text in ("one", "two th")]
    assert found[0]["generated_text"].startswith("one")
    # A run whose end is lost goes on from its checkpoint to the same end.
    whole = (tmp_path / "trainer" / "model.safetensors").read_bytes()
    for name in ("model.safetensors", "config.json", "loss.png"):
        (tmp_path / "trainer" / name).unlink()
    again = msllm.Trainer("text_generation", gpt2(), args, train_dataset=tokens, output_dir=tmp_path / "trainer")
    again.train(resume_from_checkpoint=True)
    assert (tmp_path / "trainer" / "model.safetensors").read_bytes() == whole


def test_finetuning_is_the_command_on_records_and_an_adapter_on_a_file(tiny_model, tmp_path):
    from msllm.commands.finetune import finetune
    from msllm.tuning.config import LoraConfig

    records = [
        {"prompt": f"{a} ", "completion": b} for a, b in (("one", "two"), ("two", "three"), ("1", "2"), ("2", "3"))
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    args = msllm.TrainingArguments(num_train_epochs=2, per_device_train_batch_size=2, learning_rate=1e-3)
    finetune(str(tiny_model), [str(path)], args, LoraConfig(), str(tmp_path / "command"))
    trainer = msllm.Trainer(
        "text_generation", str(tiny_model), args, train_dataset=records, output_dir=tmp_path / "records"
    )
    trainer.finetune()
    assert losses(tmp_path / "records") == losses(tmp_path / "command")
    adapted = msllm.Trainer(
        "text_generation", tiny_model, args, train_dataset=path, pet_method="lora", output_dir=tmp_path / "lora"
    )
    adapted.train()
    assert (tmp_path / "lora" / "adapter_config.json").is_file()
    assert (
        adapted.predict("one", max_new_tokens=3)
        == msllm.pipeline(model=tmp_path / "lora")(["one"], max_new_tokens=3)[0]
    )
    with pytest.raises(UserError, match="adapters name the folder of their model"):
        adapted.train()


def test_workers_options_are_those_of_mindformers(tokens, tmp_path):
    trainer = msllm.Trainer(
        "text_generation",
        gpt2(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
        {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2},
        train_dataset=tokens,
    )
    found = {}
    for recompute in (False, True):
        trainer.output = tmp_path / str(recompute)
        trainer.model = gpt2(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        trainer.set_recompute_config(recompute=recompute)
        trainer.train()
        found[recompute] = losses(trainer.output), trainer.evaluate()["loss"]
    assert found[True][0] == pytest.approx(found[False][0], rel=1e-6)
    assert found[True][1] == pytest.approx(found[False][1], rel=1e-6)
    trainer.set_parallel_config(
        data_parallel=2, model_parallel=2, pipeline_stage=2, micro_batch_num=4, optimizer_shard=True
    )
    wanted = msllm.ParallelConfig(data=2, tensor=2, pipeline=2, micro_batches=4, optimizer=1, recompute=True)
    assert trainer.parallel == wanted
    trainer.output = tmp_path / "spread"
    with pytest.raises(UserError, match=r"data x tensor x pipeline x sequence = .* = 8, and there are 1 workers"):
        trainer.train()
    with pytest.raises(UserError, match="gradient_aggregation_group is 8"):
        trainer.set_parallel_config(gradient_aggregation_group=8)
    with pytest.raises(UserError, match=r"has no model_paralel \(did you mean 'model_parallel'\?\)"):
        trainer.set_parallel_config(model_paralel=2)
    with pytest.raises(UserError, match="select_recompute is True"):
        trainer.set_recompute_config(select_recompute=True)


def test_classes_are_learned_as_by_the_command_measured_and_predicted(bert, tmp_path):
    from msllm.commands.tasks import TaskTrainingArguments, finetune_task

    words = {"good": ("good", "play"), "bad": ("bad", "film")}
    data = [
        {"text": f"the {thing} is {word}", "label": label}
        for label in words
        for word in words[label]
        for thing in ("play", "film", "home")
    ]
    trainer = msllm.Trainer(
        "text_classification", bert, BY_HEART, train_dataset=data, eval_dataset=data, output_dir=tmp_path / "out"
    )
    trainer.train()
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in data))
    args = TaskTrainingArguments(**BY_HEART, warmup_ratio=0.0, weight_decay=0.0)
    finetune_task("text-classification", str(bert), str(path), str(tmp_path / "command"), args)
    assert losses(tmp_path / "out") == losses(tmp_path / "command")
    figures = trainer.evaluate()
    assert figures["accuracy"] == 1.0 and figures["loss"] < 0.5
    logged = read_json_lines(tmp_path / "out" / "log.jsonl")[-1]
    assert logged["eval_accuracy"] == 1.0 and logged["eval_loss"] == pytest.approx(figures["loss"], rel=1e-5)
    texts = [record["text"] for record in data]
    found = trainer.predict(texts)
    assert [line["label"] for line in found] == [record["label"] for record in data]
    other = msllm.Trainer("text_classification", bert, eval_dataset=data)
    assert other.predict(texts, predict_checkpoint=tmp_path / "out") == found
    assert other.evaluate(eval_checkpoint=tmp_path / "out")["accuracy"] == 1.0
    with pytest.raises(UserError, match="record 1 has no label"):
        other.evaluate([{"text": "the play is good"}])


def test_tags_and_answers_on_records_and_a_new_model(bert_tokenizer, tmp_path):
    config = {"model_type": "bert", "vocab_size": len(bert_tokenizer), "max_position_embeddings": 32, **BERT}
    people = [("ada", "rome"), ("bob", "paris"), ("she", "rome")]
    tagged = [TaggedSentence((a, "lives", "in", b), ("B-PER", "O", "O", "B-LOC")) for a, b in people]
    asked = [Question(a, "where ?", f"{a} lives in {b} .", ((b, len(a) + 10),)) for a, b in people]
    for task, data, figure in (("token_classification", tagged, "f1"), ("question_answering", asked, "exact_match")):
        options = {"doc_stride": 8} if task[0] == "q" else {}
        trainer = msllm.Trainer(
            task,
            config,
            {**BY_HEART, "num_train_epochs": 20},
            train_dataset=data,
            tokenizer=bert_tokenizer,
            output_dir=tmp_path / task,
            **options,
        )
        trainer.train()
        assert trainer.evaluate(data)[figure] == 1.0
        if options:
            question = {"question": "where ?", "context": "bob lives in paris ."}
            assert trainer.predict(question)[0]["answer"] == "paris"
        else:
            (found,) = trainer.predict("bob lives in paris")
            assert [(e["entity"], e["word"]) for e in found] == [("B-PER", "bob"), ("B-LOC", "paris")]


def test_translations_are_learned_from_pairs(tmp_path):
    pairs = [(a, b) for a, b in zip(("eins", "zwei", "eins zwei", "zwei eins"), ("one", "two", "one two", "two one"))]
    tokenizer = train_tokenizer([text for pair in pairs for text in pair], kind="word")
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "attention_heads": 2, "ffn_dim": 32}
    config = TransformerConfig(
        vocab_size=len(tokenizer),
        dropout=0.0,
        max_positions=16,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=tokenizer.bos_token_id,
        **sizes,
    )
    trainer = msllm.Trainer(
        "translation",
        config,
        {**BY_HEART, "num_train_epochs": 40, "per_device_train_batch_size": 4},
        train_dataset=pairs,
        eval_dataset=pairs,
        tokenizer=tokenizer,
        output_dir=tmp_path / "out",
        label_smoothing=0.0,
    )
    trainer.train()
    figures = trainer.evaluate()
    assert figures["chrf"] == pytest.approx(100) and figures["perplexity"] < 1.5
    assert trainer.predict(["zwei", "eins zwei"]) == [{"translation_text": "two"}, {"translation_text": "one two"}]
    assert msllm.pipeline("translation_de_to_en", tmp_path / "out")("eins") == [{"translation_text": "one"}]


def test_summaries_have_rouge_and_masked_words_their_accuracy(tiny_model, bert, bert_tokenizer, tmp_path):
    articles = [{"article": "One two three. Four.", "summary": "one two"}, {"article": "123 1 2", "summary": "1 2"}]
    args = {"max_steps": 2, "per_device_train_batch_size": 2}
    trainer = msllm.Trainer(
        "summarization", tiny_model, args, train_dataset=articles, output_dir=tmp_path / "gpt", max_new_tokens=4
    )
    trainer.finetune()
    assert {"loss", "perplexity", "rouge1", "rougeL"} <= trainer.evaluate(articles).keys()
    (line,) = trainer.predict(articles[0]["article"])
    assert {*line} == {"summary_text"}
    with pytest.raises(UserError, match="is no article with its summary"):
        trainer.evaluate([{"text": "one two"}])
    documents = [["ada lives in rome .", "bob went home by train .", "the film is good ."] * 2] * 2
    examples = build_pretraining(documents, bert_tokenizer, 24, seed=0)
    write_shards(examples, tmp_path / "examples", 1)
    bert_tokenizer.save_pretrained(tmp_path / "examples")
    masked = msllm.Trainer("fill_mask", bert, args, train_dataset=tmp_path / "examples", output_dir=tmp_path / "bert")
    masked.train()
    figures = masked.evaluate(tmp_path / "examples")
    assert {"loss", "mlm_loss", "nsp_loss", "mlm_accuracy", "nsp_accuracy"} == figures.keys()
    assert [len(words) for words in masked.predict(["ada [MASK] in rome", "[MASK]"], top_k=3)] == [3, 3]


def test_options_come_from_yaml_and_mistakes_are_one_line(tokens, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("learning_rate: 5e-4\nmax_steps: 3\noutput_dir: somewhere\noptim: lamb\n")
    trainer = msllm.Trainer("text_generation", "gpt2", path)
    assert trainer.args == msllm.TrainingArguments(learning_rate=5e-4, max_steps=3, optim="lamb")
    assert str(trainer.output) == "somewhere" and trainer.model.n_layer == 12
    assert str(msllm.Trainer("text_generation", "gpt2", path, output_dir="elsewhere").output) == "elsewhere"
    assert msllm.Trainer(model_name="gpt2", args={"optim": "lamb"}, optimizers="adamw").args.optim == "adamw"

    def refused(message, *arguments, **options):
        with pytest.raises(UserError, match=message):
            msllm.Trainer(*arguments, **options)

    refused(r"unknown task 'text_generaton' \(did you mean 'text-generation'\?\)", "text_generaton", "gpt2")
    refused(r"unknown model 'gpt3' \(did you mean 'gpt2'\?\)", "text_generation", "gpt3")
    refused("model is missing", "text_generation")
    refused("task is a TrainingArguments, .* the order is", msllm.TrainingArguments(), "text_generation", "gpt2")
    refused("callbacks is not supported: the loop writes log.jsonl", model="gpt2", callbacks=[print])
    refused(r"unknown argument max_lenght \(did you mean 'max_length'\?\)", model="gpt2", max_lenght=3)
    refused("unknown argument packing", "token_classification", "gpt2", packing=True)
    refused("optimizers is <.*>, expected the name of one: adamw, lamb", model="gpt2", optimizers=print)
    refused("pet_method is given, and fill-mask trains whole models", "fill_mask", "gpt2", pet_method="lora")
    refused("pet_method is 'ptuning', expected lora", model="gpt2", pet_method="ptuning")
    refused(r"args has no learning_rat \(did you mean 'learning_rate'\?\)", model="gpt2", args={"learning_rat": 1})
    refused("args: max_steps is 'many', expected a whole number", model="gpt2", args={"max_steps": "many"})
    refused("args: max_steps is 1.5, expected a whole number", model="gpt2", args={"max_steps": 1.5})
    refused("args: jit is 'yes', expected true or false", model="gpt2", args={"jit": "yes"})
    refused("overwrite_output_dir is 'no', expected true", model="gpt2", args={"overwrite_output_dir": "no"})
    path.write_text("- a\n")
    refused("run.yaml holds a list, expected keys with values", model="gpt2", args=path)
    path.write_text("a: [\n")
    refused("run.yaml is not YAML", model="gpt2", args=path)

    def stopped(message, call, *arguments, **options):
        with pytest.raises(UserError, match=message):
            call(*arguments, **options)

    trainer = msllm.Trainer("text_generation", gpt2(), output_dir=tmp_path / "out")
    stopped("train_dataset is missing", trainer.train)
    stopped("the new gpt2 has no trained weights; train it first, or give finetune_checkpoint=", trainer.finetune)
    stopped("holds no checkpoint; train first", trainer.train, True)
    stopped("auto_trans_ckpt is not supported: checkpoints of any layout", trainer.train, auto_trans_ckpt=True)
    stopped(r"unknown argument do_evl \(did you mean 'do_eval'\?\)", trainer.train, do_evl=True)
    stopped("input_data is missing", trainer.predict)
    trainer.model = trainer_model = msllm.AutoModelForCausalLM.from_config(gpt2())
    stopped("eval_dataset is missing", trainer.evaluate)
    stopped("tokenizer is missing, and the GPT2LMHeadModel has no folder", trainer.evaluate, [{"text": "one two"}])
    stopped("record 1 is a int, expected a path, or a record", trainer.evaluate, [3])
    other = msllm.Trainer("fill_mask", trainer_model, train_dataset=tokens)
    stopped("has no manifest.json; give a folder that msllm pretraining-data wrote", other.train)
    other = msllm.Trainer("translation", trainer_model, train_dataset=[("a", "b")], tokenizer=str(tokens))
    stopped("the GPT2LMHeadModel does not translate", other.train)
    stopped("pair 1 is .*, expected two sentences", other.evaluate, [("a", "b", "c")])
