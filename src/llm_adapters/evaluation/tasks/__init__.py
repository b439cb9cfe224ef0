"""One file a benchmark: its name, its size, its rates by chance. Found by ``evaluation.task.tasks``."""
