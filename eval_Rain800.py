"""Derains and scores the test images of Rain800 with the teacher, SID."""

from config import EVALUATIONS
from machinery.evaluation import evaluate

if __name__ == "__main__":
    evaluate(EVALUATIONS["Rain800", "SID"])
