"""python -m msllm.lessons runs the quick setting of every run of every chapter; `make chapters` calls it."""

import subprocess
import sys
import time

from msllm.errors import UserError
from msllm.lessons import all_chapters


def main() -> int:
    """Runs them one after the other, each in a process of its own; returns the exit code of the first that fails."""
    done, start = 0, time.perf_counter()
    for number, chapter in all_chapters().items():
        for name in chapter.runs():
            words = ["chapter", str(number), "--run", name, "--quick"]
            print(f"\n$ msllm {' '.join(words)}", flush=True)
            code = subprocess.run([sys.executable, "-m", "msllm", *words]).returncode
            if code:
                print(f"error: msllm {' '.join(words)} failed with exit code {code}", file=sys.stderr)
                return code
            done += 1
    print(f"\n{done} runs in {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
