"""msllm chat: a conversation in the terminal."""

import contextlib
import json
import sys
from pathlib import Path

from msllm.errors import UserError
from msllm.files import atomic_file
from msllm.generation.config import GenerationConfig

HELP = """/reset         forget the conversation
/system TEXT   set the system prompt and forget the conversation
/save FILE     save the conversation as messages JSONL, ready for training
/help          this list
/exit          leave (also Ctrl-D)"""


def chat(model: str, generation: GenerationConfig, system: str | None = None) -> None:
    """Talks with a model in the terminal; answers stream, /help lists the commands.

    Args:
        model: Hugging Face folder, or adapter folder.
        generation: options of generation.
        system: system prompt.
    """
    from msllm.generation.chat import ChatSession
    from msllm.models.causal_lm import require_causal
    from msllm.tuning.loading import open_checkpoint

    network, tokenizer = open_checkpoint(model)
    require_causal(network, model)
    session = ChatSession(network, tokenizer, generation, system)
    interactive = sys.stdin.isatty()
    if interactive:
        with contextlib.suppress(ImportError):  # Windows has its own
            import readline  # noqa: F401  line editing and history for input()
        print(f"{Path(model).name}: type a message, /help for commands, Ctrl-D to leave.")
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            break
        except KeyboardInterrupt:
            print()
            continue
        if line in ("/exit", "/quit"):
            break
        try:
            if line.startswith("/"):
                print(command(session, line))
            elif line:
                answer(session, line)
        except UserError as e:
            print(f"error: {e}", file=sys.stderr)
    if interactive:
        print()


def answer(session, line: str) -> None:
    """Streams the answer to one message; Ctrl-C ends the answer, not the conversation."""
    forgotten = session.forgotten
    try:
        session.reply(line, lambda piece: print(piece, end="", flush=True))
        print()
    except KeyboardInterrupt:
        print("\n(stopped; this exchange is not remembered)")
    if session.forgotten > forgotten:
        print("(the oldest exchange no longer fits into the context and was forgotten)", file=sys.stderr)


def command(session, line: str) -> str:
    """Runs a / command and returns what to print."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name == "/help":
        return HELP
    if name == "/reset":
        session.reset()
        return "(the conversation is forgotten)"
    if name == "/system":
        session.system = rest or None
        session.reset()
        return f"(system prompt: {rest or 'none'})"
    if name == "/save":
        if not rest:
            raise UserError("/save needs a file name, for example /save talk.jsonl")
        with atomic_file(rest) as tmp:
            tmp.write_text(json.dumps({"messages": session.messages}, ensure_ascii=False) + "\n", encoding="utf-8")
        return f"(saved {len(session.messages)} messages to {rest})"
    raise UserError(f"unknown command {name}; /help lists them")
