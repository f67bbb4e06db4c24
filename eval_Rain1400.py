"""Derains and scores the test images of Rain1400 with the teacher, SID."""

from config import EVALUATIONS
from machinery.evaluation import evaluate

if __name__ == "__main__":
    evaluate(EVALUATIONS["Rain1400", "SID"])
