"""What the user gets at the end of a job: manifest.csv, job.json, report.html and a message."""
