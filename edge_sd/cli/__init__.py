"""The `edge-sd` command: one file a verb. What a verb needs is imported when it runs, so that --help is quick."""
