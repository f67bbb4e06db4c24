"""Derains and scores the test images of Rain1200 with the student, SSID-KD."""

from config import EVALUATIONS
from machinery.evaluation import evaluate

if __name__ == "__main__":
    evaluate(EVALUATIONS["Rain1200", "SSID-KD"])
