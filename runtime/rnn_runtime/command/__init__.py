"""What the commands share: the click class with its one-line errors, options, and the progress bar.

In the runtime, only modules that define a command import it, or click.
"""
