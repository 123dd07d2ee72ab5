"""The `sidr` command: one module per subcommand."""
