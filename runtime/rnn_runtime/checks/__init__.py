"""Questions about an installed model: is it as exact, how fast is it, and what is missing here?

`rnn-infer --self-check`, `--benchmark` and `--doctor` use it.
"""
