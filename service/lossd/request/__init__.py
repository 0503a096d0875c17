"""From a request without its tensors to a job: options, plans, recipes."""
