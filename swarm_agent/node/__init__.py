"""What every host does: task state machine, engine client, executor, reporter."""
