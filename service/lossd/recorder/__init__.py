"""The recorder: the one process that writes the store of runs.

The first connection of a front starts it (:mod:`lossd.recorder.keeper`). Fronts ask it over a Unix socket
(:mod:`lossd.recorder.client`, :mod:`lossd.recorder.protocol`). It commits in one transaction all batches that wait, and
answers after the commit (:mod:`lossd.recorder.recorder`). It loads neither torch nor a web framework.
"""
