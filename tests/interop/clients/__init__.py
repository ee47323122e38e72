"""The clients of the table, each behind the same face: `base` says what the steps need, the others how it is had."""
