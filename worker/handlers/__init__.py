"""One module a kind of job: ``run(params, context)`` returns the job's result."""
