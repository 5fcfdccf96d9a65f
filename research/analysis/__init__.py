"""What a finished run can be looked at with: plots, refits of its config, ladders of models.

curves.py    what scores are worth at every threshold
figures.py   numbers -> matplotlib figures, without pyplot and without files
refits.py    a run's config trained again, over penalties and over parts of the training split
plots.py     which plots there are, what each needs of a run, and where they are written
ladder.py    models from the smallest to the largest on the same data
"""
