"""Where registries keep their artifacts: one module for each kind of place."""
