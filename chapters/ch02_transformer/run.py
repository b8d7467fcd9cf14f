"""Chapter 2, the Transformer: attention step by step, positions, and a translator from nothing.

msllm chapter 2                          lists the runs
msllm chapter 2 --run train              German to English, the full run
msllm chapter 2 --run train --quick      the same in under two minutes, which learns little
"""

from msllm.lessons import Run, run

WARMUP = 2000
# On so little text, strong dropout and the mean of the last checkpoints matter more than size.
TRANSLATOR = {
    "vocab_size": 8000,
    "lowercase": True,
    "d_model": 256,
    "layers": 3,
    "heads": 8,
    "ffn_dim": 512,
    "dropout": 0.3,
    "label_smoothing": 0.1,
    "average_last": 5,
    "resume": "auto",
    "overwrite": True,
}
SCHEDULE = {
    "train_batch_tokens": 4096,
    "learning_rate": (256 * WARMUP) ** -0.5,  # the peak of the paper's schedule (section 5.3): (d_model * warm-up)^-1/2
    "lr_scheduler_type": "inverse_sqrt",
    "warmup_steps": WARMUP,
    "adam_beta2": 0.98,
    "adam_epsilon": 1e-9,
    "per_device_eval_batch_size": 100,
    "save_total_limit": 5,
}


@run("Multi30k, German to English: train, translate test_2016_flickr, BLEU (about an hour)", needs=("multi30k",))
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
    length = {"max_steps": 20} if job.quick else {"num_train_epochs": 30, "eval_steps": 117, "save_steps": 117}
    train_translator(
        **paths,
        **TRANSLATOR,
        training=TrainingArguments(**SCHEDULE, **length, seed=job.seed),
        output=str(job.output),
        limit=2000 if job.quick else None,
    )
