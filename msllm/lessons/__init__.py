"""What a chapter's run.py and exercises are made of; knows no MindSpore.

A chapter is a folder chapters/chNN_name. The functions of its run.py that carry ``@run("what it does, how long")``
are what `msllm chapter N` lists and `msllm chapter N --run NAME` calls, with the run's ``Run``:

    from msllm.lessons import Run, run

    @run("bits per character of n-gram models, 2 minutes", needs=("tinyshakespeare",), short=True)
    def ngram(job: Run) -> None:
        text = job.file("tinyshakespeare/input.txt").read_text(encoding="utf-8")
        ...
        job.write_json("ngram.json", {"bits_per_character": bits})
"""

from msllm.lazy import exports

__all__, __getattr__ = exports(
    __name__,
    {"Chapter": "chapters", "all_chapters": "chapters", "find_chapter": "chapters", "Run": "job", "run": "job"},
)
