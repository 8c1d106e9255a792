"""One file per experiment: its docstring says how to run it and what to expect; get_config(size) returns settings."""
