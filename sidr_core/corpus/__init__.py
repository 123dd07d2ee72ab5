"""The training corpus: prompts, alignment tasks, the teacher, and the guards against leaks."""
