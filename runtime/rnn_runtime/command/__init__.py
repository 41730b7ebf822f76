"""What the commands share: the click class with its one-line errors, standard streams, and the progress bar.

Only the modules that define a command (`cli.py`, `toolbox.py`, `write_images.py`) use it. Nothing else imports click.
"""
