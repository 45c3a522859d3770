"""The results of a job: manifest.csv, job.json, report.html and a notification."""
