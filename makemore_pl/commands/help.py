"""The texts of `--help`: for each command, the flags that matter most come first."""

from makemore_pl.wordlist import shipped

RECIPES = ", ".join(sorted(path.stem for path in shipped("configs").glob("*.yaml")))
"""The names of the recipes that come with the package."""

COMMANDS = {
    "fit": "train on a list of words, then print new ones",
    "predict": "print new words, or score given ones",
    "validate": "loss, perplexity and accuracy on the validation words",
    "test": "the same on the test words",
    "lr_find": "find a learning rate: the lecture's sweep",
    "export": "write a web page, ONNX or safetensors",
}

NEWEST = "  --ckpt_path FILE              a checkpoint; default: the newest run's best\n"

ALL = "All flags: makemore_pl {} --help all\n"

OPENINGS = {
    "fit": """Trains on a list of words, then prints new ones. The flags that matter most:

  --data.path FILE              your own list, one word a line; `-` for stdin;
                                flags that you omit are chosen to suit it
  --data.column NAME            its column, where the list is a CSV or TSV file
  --config NAME                 a recipe, such as lecture; or a YAML file
  --ckpt_path last              resume the newest run; or resume from a file
  --model.block_size N          how many characters the model looks back
  --model.hidden_size N         units of the tanh layer
  --model.embedding_dim N       dimensions of a character's embedding
  --model.lr X                  learning rate (lr_find finds one)
  --model.optimizer sgd         as in the lecture, instead of AdamW
  --data.batch_size N           minibatches instead of all windows at once
  --trainer.max_steps N         how many updates
  --trainer.accelerator gpu     the device; also --trainer.devices, .precision
  --pictures false              fewer pictures in TensorBoard
""",
    "predict": "Prints new words; the word list is not needed. The flags that matter most:\n\n"
    + NEWEST
    + """  --sample.num_names N          how many
  --sample.prompt TEXT          how each begins
  --sample.temperature X        below 1 more typical, above 1 more varied
  --sample.top_k N              only the N most likely characters
  --sample.top_p X              only the most likely that make up the share X
  --sample.min_length N         also --sample.max_length
  --sample.unique               no duplicates
  --sample.novel                only names that are not in the list
  --sample.pattern REGEX        only names that match it: .*ette, [aeiou].{4}
  --sample.seed random          others each time
  --sample.counting             mixed with counting the list: the lower loss
  --sample.format jsonl         or csv: log-probability, and the split it is in
  --sample.output FILE          a file instead of stdout
  --sample.score FILE           how likely are these words? `-` for stdin
""",
    "validate": "Prints loss, perplexity and accuracy on the validation words.\n\n"
    + NEWEST
    + "  --split train                 the training words instead\n",
    "test": "Prints loss, perplexity and accuracy on the test words.\n\n" + NEWEST,
    "lr_find": """Takes one step at each of many learning rates from 0.001 to 1 and suggests one.
With --model.schedule linear, the default, it is the peak: the rate rises to it
and falls to zero, so it is twice the rate that is good at every step.
All flags of fit's model and data apply:

  --data.path FILE              your own list
  --config NAME                 a recipe, such as lecture; or a YAML file
  --num_steps N                 how many learning rates to try
""",
    "export": "Writes a checkpoint in another format.\n\n"
    + NEWEST
    + """  --output playground.html      an interactive page: one file, no network
  --output model.onnx           for ONNX runtimes
  --output model.safetensors    the five tensors
  --output mean.ckpt            a checkpoint to sample from and to test
  --average [FILE, ...]         further checkpoints: the average of all
  --average [best]              the best one of the run before
""",
}
