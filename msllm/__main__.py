"""python -m msllm is the msllm command."""

import sys

from msllm.cli import main

sys.exit(main())
