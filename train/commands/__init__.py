"""The subcommands of lkm-train, one module each."""
