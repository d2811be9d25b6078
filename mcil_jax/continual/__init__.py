"""Class-incremental learning without models: tasks, exemplars, task inference."""
