"""The command line: rl_zoo3's commands, hyper-parameter files, whole training runs."""
