"""One file for each verb. Each has ``command``, and imports what it needs when it is called."""
