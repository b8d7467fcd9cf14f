"""What each command of the command line does; a command is a typed function, and its docstring is its help."""
