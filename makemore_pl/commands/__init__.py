"""The command line: `fit`, `predict`, `validate`, `test`, `lr_find`, `export`."""
