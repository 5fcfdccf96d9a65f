"""Analysis of finished runs: plots, refits of a run's config, ladders of models.

curves.py    ROC, precision-recall and confusion counts of a classifier's scores
canvas.py    what all figures share
figures.py, class_figures.py   numbers -> matplotlib figures, without pyplot and without files
refits.py    a run's config trained again, over penalties and over parts of the training split
plots.py     the available plots, their requirements, and where they are written
ladder.py    models from the smallest to the largest on the same data
queueing.py  how long requests wait for servers, by formulas
batch_queue.py   the same with batches, event by event
capacity.py  the replicas of a service that a load needs, by both
capacity_report.py   the same as a table, as JSON and as a figure
"""
