"""The gate's judgement and its pages: records in, verdicts and pages out. Knows neither the pipeline nor the bench."""
