"""Names of the files that runs and evaluations leave; apart, so that who only reads them need not load torch."""

MANIFEST = "manifest.json"
"""Of a run or an evaluation that is complete; written last."""
TRAINING = "training.json"
"""What training took and gave; written when ``adapter`` holds its result."""
RECORD = "evaluation.json"
"""Of an evaluation; written first: what is asked. A folder with the same record is gone on with."""
