"""The subcommands of lkm-calc, a module each."""
