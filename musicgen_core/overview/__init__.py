"""`dataset.html`: what a data set consists of, and its clips that stand out."""
